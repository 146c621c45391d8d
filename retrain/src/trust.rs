//! Whose corrections train: those that came by a key with the role rater, or admin, which includes it.
//!
//! While there are no keys everybody has every role; so has whoever spoke before there were any. A revoked key's earlier words stand:
//! it was good when they were said. Ratings count from everybody: they choose among answers that the models gave, and put no
//! words into them.

use retune_ledger::{Feedback, FeedbackQuery, Ledger};

use crate::Error;

/// The ledger's feedback, without the corrections that must not train.
pub(crate) async fn feedback(
    ledger: &Ledger,
    query: &FeedbackQuery,
) -> Result<Vec<Feedback>, Error> {
    trusted(ledger, ledger.feedback(query).await?).await
}

/// The same of feedback that was read already.
pub(crate) async fn trusted(
    ledger: &Ledger,
    mut feedback: Vec<Feedback>,
) -> Result<Vec<Feedback>, Error> {
    let keys = ledger.keys().await?;
    keys.withhold_corrections(&mut feedback);
    Ok(feedback)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use chrono::Utc;
    use retune_ledger::{Key, KeyList, Role};

    use super::*;
    use crate::testing::corrected;

    #[test]
    fn only_what_raters_corrected_trains_and_without_keys_everything() {
        let mut keys = KeyList::default();
        let mut id = |role, revoked: bool| {
            let (mut key, _) = Key::new("somebody", role).unwrap();
            key.revoked = revoked.then(Utc::now);
            keys.keys.push(key.clone());
            key.id
        };
        let (app, rater) = (id(Role::App, false), id(Role::Rater, false));
        let (admin, gone) = (id(Role::Admin, false), id(Role::Rater, true));
        let mut said: Vec<Feedback> = [&app, &rater, &admin, &gone, "unknown"]
            .iter()
            .map(|by| corrected(1, 0, by, "so"))
            .collect();
        said.push(Feedback {
            rater: None,
            ..corrected(1, 0, "", "so")
        });
        let kept = |said: &[Feedback]| -> Vec<bool> {
            said.iter().map(|said| said.correction.is_some()).collect()
        };
        let mut open = said.clone();
        KeyList::default().withhold_corrections(&mut open);
        assert_eq!(kept(&open), [true; 6]);
        keys.withhold_corrections(&mut said);
        assert_eq!(kept(&said), [false, true, true, true, false, true]);
    }

    #[test]
    fn a_rating_beside_it_stays() {
        let (key, _) = Key::new("app", Role::App).unwrap();
        let mut said = [Feedback {
            rating: Some(5),
            ..corrected(1, 0, &key.id, "so")
        }];
        let keys = KeyList {
            keys: vec![key],
            damaged: Vec::new(),
        };
        keys.withhold_corrections(&mut said);
        assert_eq!((said[0].rating, &said[0].correction), (Some(5), &None));
    }
}
