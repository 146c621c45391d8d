//! What was decided: which adapter stands where, and what a stream is measured against.

use chrono::Utc;

use crate::error::Error;
use crate::ledger::Ledger;
use crate::place::Place;
use crate::reference::{Ratings, Reference, Service};
use crate::stages::Stages;

impl Ledger {
    /// The stages of a task's adapters.
    pub async fn stages(&self, task: &str) -> Result<Stages, Error> {
        let task = task.to_owned();
        self.blocking(move |store| stages(store, &task)).await
    }

    /// All stages that were ever decided, oldest first.
    pub async fn stages_history(&self, task: &str) -> Result<Vec<Stages>, Error> {
        let task = task.to_owned();
        self.blocking(move |store| history(store, &task)).await
    }

    /// Decides the stages anew, if nobody did since `expected`.
    pub async fn set_stages(&self, task: &str, expected: u64, after: Stages) -> Result<(), Error> {
        let task = task.to_owned();
        self.blocking(move |store| set_stages(store, &task, expected, &after))
            .await
    }

    /// Freezes a reference; false if there was one.
    pub async fn put_reference(&self, reference: &Reference) -> Result<bool, Error> {
        let reference = reference.clone();
        self.blocking(move |store| put_reference(store, &reference))
            .await
    }

    /// Freezes a reference of ratings; false if there was one.
    pub async fn put_ratings(&self, ratings: &Ratings) -> Result<bool, Error> {
        let ratings = ratings.clone();
        self.blocking(move |store| put_ratings(store, &ratings))
            .await
    }

    /// An adapter's reference of ratings.
    pub async fn ratings(&self, task: &str, adapter: &str) -> Result<Option<Ratings>, Error> {
        let (task, adapter) = (task.to_owned(), adapter.to_owned());
        self.blocking(move |store| ratings(store, &task, &adapter))
            .await
    }

    /// Freezes a reference of how an adapter was served; false if there was one.
    pub async fn put_service(&self, service: &Service) -> Result<bool, Error> {
        let service = service.clone();
        self.blocking(move |store| put_service(store, &service))
            .await
    }

    /// An adapter's reference of how it was served.
    pub async fn service(&self, task: &str, adapter: &str) -> Result<Option<Service>, Error> {
        let (task, adapter) = (task.to_owned(), adapter.to_owned());
        self.blocking(move |store| service(store, &task, &adapter))
            .await
    }

    /// An adapter's reference; with a digest only if it is that version's.
    pub async fn reference(
        &self,
        task: &str,
        adapter: &str,
        digest: Option<&str>,
    ) -> Result<Option<Reference>, Error> {
        let (task, adapter, digest) = (
            task.to_owned(),
            adapter.to_owned(),
            digest.map(str::to_owned),
        );
        self.blocking(move |store| reference(store, &task, &adapter, digest.as_deref()))
            .await
    }
}

/// The numbers of a task's decisions, in order.
fn decisions(store: &Place, task: &str) -> Result<Vec<u64>, Error> {
    let number = |name: &String| {
        name.strip_suffix(".json")
            .and_then(|n| n.parse::<u64>().ok())
    };
    let names = store.join("stages").join(task).names()?;
    let mut numbers: Vec<u64> = names.iter().filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

fn decision(store: &Place, task: &str, seq: u64) -> Result<Stages, Error> {
    let place = store.join("stages").join(task).join(format!("{seq}.json"));
    let found = place.read_json::<Stages>()?;
    Ok(Stages {
        seq,
        ..found.unwrap_or_default()
    })
}

fn stages(store: &Place, task: &str) -> Result<Stages, Error> {
    match decisions(store, task)?.last() {
        Some(seq) => decision(store, task, *seq),
        None => Ok(Stages::default()),
    }
}

fn history(store: &Place, task: &str) -> Result<Vec<Stages>, Error> {
    let numbers = decisions(store, task)?;
    numbers
        .into_iter()
        .map(|seq| decision(store, task, seq))
        .collect()
}

fn set_stages(store: &Place, task: &str, expected: u64, after: &Stages) -> Result<(), Error> {
    let conflict = || Error::Conflict {
        what: format!("the stages of {task}"),
    };
    if stages(store, task)?.seq != expected {
        return Err(conflict());
    }
    let next = Stages {
        seq: expected + 1,
        at: Some(Utc::now()),
        ..after.clone()
    };
    let place = store
        .join("stages")
        .join(task)
        .join(format!("{}.json", next.seq));
    if place.create_json_once(&next)? {
        Ok(())
    } else {
        Err(conflict())
    }
}

fn reference_place(store: &Place, task: &str, adapter: &str, of: &str) -> Place {
    store
        .join("references")
        .join(task)
        .join(format!("{adapter}{of}.json"))
}

/// An adapter's reference of ratings, beside that of its answers.
const RATINGS: &str = ".ratings";

fn put_ratings(store: &Place, ratings: &Ratings) -> Result<bool, Error> {
    reference_place(store, &ratings.task, &ratings.adapter, RATINGS).create_json_once(ratings)
}

fn ratings(store: &Place, task: &str, adapter: &str) -> Result<Option<Ratings>, Error> {
    reference_place(store, task, adapter, RATINGS).read_json()
}

/// An adapter's reference of how it was served.
const SERVICE: &str = ".service";

fn put_service(store: &Place, service: &Service) -> Result<bool, Error> {
    reference_place(store, &service.task, &service.adapter, SERVICE).create_json_once(service)
}

fn service(store: &Place, task: &str, adapter: &str) -> Result<Option<Service>, Error> {
    reference_place(store, task, adapter, SERVICE).read_json()
}

fn put_reference(store: &Place, reference: &Reference) -> Result<bool, Error> {
    reference_place(store, &reference.task, &reference.adapter, "").create_json_once(reference)
}

fn reference(
    store: &Place,
    task: &str,
    adapter: &str,
    digest: Option<&str>,
) -> Result<Option<Reference>, Error> {
    let found: Option<Reference> = reference_place(store, task, adapter, "").read_json()?;
    Ok(found.filter(|r| digest.is_none() || r.digest.as_deref() == digest))
}
