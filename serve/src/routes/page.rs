//! A page of a list, as OpenAI's clients ask for it.

use actix_web::{HttpResponse, web};
use retune_wire::Refusal;
use serde_json::{Value, json};

use crate::error::Error;

/// What a list takes in its query.
pub(super) struct Rules {
    /// Of a page, where the client does not say.
    pub(super) limit: usize,
    /// The longest page.
    pub(super) most: usize,
    /// Where the client does not say.
    pub(super) newest_first: bool,
    /// Whether the client may say.
    pub(super) order: bool,
    /// By which else can be chosen.
    pub(super) filters: &'static [&'static str],
    /// Whether by `metadata[…]` too.
    pub(super) metadata: bool,
}

/// A page that was asked for.
pub(super) struct Page {
    /// The id of the last one that the client has.
    pub(super) after: Option<String>,
    pub(super) limit: usize,
    pub(super) newest_first: bool,
    filters: Vec<(String, String)>,
    pub(super) metadata: Vec<(String, String)>,
}

impl Page {
    pub(super) fn read(query: &str, rules: &Rules) -> Result<Self, Error> {
        let mut page = Self {
            after: None,
            limit: rules.limit,
            newest_first: rules.newest_first,
            filters: Vec::new(),
            metadata: Vec::new(),
        };
        let pairs =
            web::Query::<Vec<(String, String)>>::from_query(query).map_err(|e| Refusal {
                message: format!("Invalid query: {e}."),
                param: None,
                code: None,
            })?;
        for (key, value) in pairs.into_inner() {
            page.take(key, value, rules)?;
        }
        Ok(page)
    }

    fn take(&mut self, key: String, value: String, rules: &Rules) -> Result<(), Error> {
        let wrong = |expected: String| {
            let message =
                format!("Invalid '{key}': expected {expected}, but got '{value}' instead.");
            Error::param(&key, "invalid_value", message)
        };
        let of_metadata = key
            .strip_prefix("metadata[")
            .and_then(|k| k.strip_suffix(']'));
        match key.as_str() {
            "after" => self.after = Some(value),
            "limit" => {
                let most = rules.most;
                let limit = value.parse().ok().filter(|n| (1..=most).contains(n));
                self.limit =
                    limit.ok_or_else(|| wrong(format!("a whole number from 1 to {most}")))?;
            }
            "order" if rules.order => match value.as_str() {
                "asc" => self.newest_first = false,
                "desc" => self.newest_first = true,
                _ => return Err(wrong("'asc' or 'desc'".to_owned())),
            },
            filter if rules.filters.contains(&filter) => self.filters.push((key, value)),
            _ => match of_metadata.filter(|_| rules.metadata) {
                Some(name) => self.metadata.push((name.to_owned(), value)),
                None => {
                    let message = format!("Unrecognized request argument supplied: {key}");
                    return Err(Error::param(&key, "unknown_parameter", message));
                }
            },
        }
        Ok(())
    }

    /// The value by which is chosen, if one is.
    pub(super) fn filter(&self, name: &str) -> Option<&str> {
        let found = self.filters.iter().rev().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The page of a whole list, oldest first, whose items have an `id`.
    pub(super) fn of(&self, mut all: Vec<Value>) -> Result<HttpResponse, Error> {
        if self.newest_first {
            all.reverse();
        }
        if let Some(after) = &self.after {
            let place = all.iter().position(|one| one["id"] == after.as_str());
            let place = place.ok_or_else(|| {
                let message = format!("Invalid 'after': there is no '{after}' in this list.");
                Error::param("after", "invalid_value", message)
            })?;
            all.drain(..=place);
        }
        let has_more = all.len() > self.limit;
        all.truncate(self.limit);
        Ok(listed(all, has_more))
    }
}

/// A page of things that have an `id`.
pub(super) fn listed(data: Vec<Value>, has_more: bool) -> HttpResponse {
    let id = |one: Option<&Value>| one.map(|one| one["id"].clone());
    HttpResponse::Ok().json(json!({
        "object": "list",
        "first_id": id(data.first()),
        "last_id": id(data.last()),
        "has_more": has_more,
        "data": data,
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const RULES: Rules = Rules {
        limit: 20,
        most: 100,
        newest_first: false,
        order: true,
        filters: &["model"],
        metadata: true,
    };

    #[test]
    fn a_page_as_clients_ask_for_it() {
        let query = "limit=3&order=desc&metadata%5Bteam%5D=a%20b&after=x&model=m";
        let page = Page::read(query, &RULES).unwrap();
        assert_eq!((page.limit, page.newest_first), (3, true));
        assert_eq!(page.metadata, [("team".to_owned(), "a b".to_owned())]);
        assert_eq!(
            (page.after.as_deref(), page.filter("model")),
            (Some("x"), Some("m"))
        );
        assert_eq!(Page::read("", &RULES).unwrap().limit, 20);
        for wrong in [
            "limit=0",
            "limit=101",
            "limit=x",
            "order=up",
            "colour=red",
            "metadata[a",
        ] {
            assert!(Page::read(wrong, &RULES).is_err(), "{wrong}");
        }
        let plain = Rules {
            order: false,
            metadata: false,
            filters: &[],
            ..RULES
        };
        for wrong in ["order=asc", "metadata[a]=b", "model=m"] {
            assert!(Page::read(wrong, &plain).is_err(), "{wrong}");
        }
    }

    #[test]
    fn pages_follow_each_other() {
        let all: Vec<Value> = (0..5).map(|n| json!({"id": n.to_string()})).collect();
        let page = |query: &str| Page::read(query, &RULES).unwrap().of(all.clone());
        assert!(page("after=9").is_err());
        for query in ["", "limit=2", "after=4", "order=desc&after=3&limit=5"] {
            assert_eq!(page(query).unwrap().status(), 200, "{query}");
        }
    }
}
