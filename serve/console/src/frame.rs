//! What is around every page: its place among the others, who looks at it, and what was just done.

use retune_ledger::Role;

use crate::assets;

/// Pages that the navigation names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// What serves, and how it is.
    Overview,
    /// Answers to rate.
    Review,
    /// Pairs to compare.
    Compare,
    /// Alarms and why.
    Drift,
    /// Runs and adapters.
    Runs,
    /// Answers side by side.
    Try,
    /// None of them.
    Elsewhere,
}

impl Place {
    /// Those that the navigation names: where, what they are called, the key behind `g`, and whose they are.
    const ALL: [(Place, &'static str, &'static str, char, Role); 6] = [
        (Place::Overview, "/console", "Overview", 'o', Role::Admin),
        (Place::Review, "/console/review", "Review", 'r', Role::Rater),
        (
            Place::Compare,
            "/console/compare",
            "Compare",
            'c',
            Role::Rater,
        ),
        (Place::Drift, "/console/drift", "Drift", 'd', Role::Admin),
        (Place::Runs, "/console/runs", "Runs", 'u', Role::Admin),
        (Place::Try, "/console/try", "Try", 't', Role::Admin),
    ];
}

/// What is around a page.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Where it is.
    pub place: Place,
    /// Whose it is; none before anybody has signed in.
    pub role: Option<Role>,
    /// With which key they signed in; none where the server asks for none.
    pub key_id: Option<String>,
    /// What its forms carry.
    pub token: String,
    /// What was just done, for the person who did it.
    pub notice: Option<String>,
}

/// A link of the navigation.
pub(crate) struct Link {
    pub(crate) to: &'static str,
    pub(crate) name: &'static str,
    pub(crate) key: char,
    pub(crate) is_here: bool,
}

impl Frame {
    /// The pages that somebody may see.
    pub(crate) fn links(&self) -> Vec<Link> {
        let may = |needed: Role| self.role.is_some_and(|role| role >= needed);
        Place::ALL
            .into_iter()
            .filter(|(.., needed)| may(*needed))
            .map(|(place, to, name, key, _)| Link {
                to,
                name,
                key,
                is_here: place == self.place,
            })
            .collect()
    }

    /// Where a file of the console is.
    pub(crate) fn asset(&self, name: &str) -> String {
        assets::address(name)
    }
}
