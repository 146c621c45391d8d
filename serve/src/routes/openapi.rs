//! `GET /openapi.json`: what the server does, for programs that read such things.
//!
//! Written by hand: requests are checked parameter by parameter here, not by derived readers, and a description that was derived from
//! types made for it would be no truer. What holds it to the server is tests/clients/conformance.py, which asks the server thousands
//! of questions made from it, and the test below.

use actix_web::HttpResponse;
use actix_web::http::header::ContentType;

const DESCRIPTION: &str = include_str!("../openapi.json");

pub(crate) async fn description() -> HttpResponse {
    HttpResponse::Ok()
        .content_type(ContentType::json())
        .body(DESCRIPTION)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::DESCRIPTION;

    /// The paths of `web::resource("…")` in routes/mod.rs, without the patterns of their parameters.
    fn routed() -> BTreeSet<String> {
        let source = include_str!("mod.rs");
        let paths = source.split("web::resource(\"").skip(1);
        paths
            .map(|rest| rest.split_once('"').unwrap().0.replace(":.+}", "}"))
            .collect()
    }

    #[test]
    fn every_route_is_described_and_every_description_is_a_route() {
        let description: Value = serde_json::from_str(DESCRIPTION).unwrap();
        let paths = description["paths"].as_object().unwrap();
        let described: BTreeSet<String> = paths.keys().cloned().collect();
        assert_eq!(described, routed());
        assert_eq!(description["info"]["version"], env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let description: Value = serde_json::from_str(DESCRIPTION).unwrap();
        let mut left = vec![&description];
        while let Some(value) = left.pop() {
            match value {
                Value::Array(list) => left.extend(list),
                Value::Object(members) => {
                    if let Some(Value::String(path)) = members.get("$ref") {
                        let pointer = path.strip_prefix('#').unwrap();
                        assert!(description.pointer(pointer).is_some(), "{path}");
                    }
                    left.extend(members.values());
                }
                _ => {}
            }
        }
    }
}
