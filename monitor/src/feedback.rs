//! What people said of an adapter's answers, read from the ledger in the order in which they said it.

use std::collections::{BTreeSet, HashSet};

use arrow::array::{Array, RecordBatch};
use chrono::{DateTime, Utc};
use retune_ledger::Ledger;

use crate::error::Error;
use crate::reader::{Answer, ask, quoted, since, time, to_time};
use crate::streams::quality::Said;

/// Rows a question.
const PAGE: usize = 2_000;

/// One that says nothing takes back what its rater said before. A test's state follows from the rows in their order, and that it was said
/// once is such a row: only the taking back is none.
const SAYS: &str = "coalesce(rating is not null or correction is not null or rubric is not null or comment is not null or preferred_over is not null, false)";

/// The feedback's place in the order: its time, and its id.
pub(crate) type Place = (DateTime<Utc>, String);

/// The next feedback behind `after` and up to a time, of whatever answers, oldest first, and whether there may be more.
pub(crate) async fn page(
    ledger: &Ledger,
    after: Option<&Place>,
    until: DateTime<Utc>,
) -> Result<(Vec<Said>, bool), Error> {
    let behind = after.map_or_else(String::new, |(ts, id)| {
        let (ts, id) = (time(*ts), quoted(id));
        format!(" and ts >= {ts} and (ts > {ts} or feedback_id > {id})")
    });
    let sql = format!(
        "select feedback_id, request_id, ts, rating, correction is not null as corrected from feedback \
         where ts <= {} and {SAYS}{behind} order by ts, feedback_id limit {PAGE}",
        time(until)
    );
    let said = ask(ledger, &sql, read).await?;
    let more = said.len() == PAGE;
    Ok((said, more))
}

/// Which of some exchanges an adapter answered for an app since a time.
pub(crate) async fn answered_by(
    ledger: &Ledger,
    (task, adapter): (&str, &str),
    from: Option<DateTime<Utc>>,
    said: &[Said],
) -> Result<HashSet<String>, Error> {
    let ids: BTreeSet<String> = said.iter().map(|said| quoted(&said.request_id)).collect();
    if ids.is_empty() {
        return Ok(HashSet::new());
    }
    let ids: Vec<String> = ids.into_iter().collect();
    let from = since(from);
    let sql = format!(
        "select request_id from exchanges where purpose = 'user' and task = {} and adapter = {}{from} and request_id in ({})",
        quoted(task),
        quoted(adapter),
        ids.join(", ")
    );
    let found = ask(ledger, &sql, |batch, found| {
        let ids = Answer("exchanges").texts(batch, "request_id")?;
        found.extend(ids.iter().flatten().map(str::to_owned));
        Ok(())
    });
    Ok(found.await?.into_iter().collect())
}

fn read(batch: &RecordBatch, said: &mut Vec<Said>) -> Result<(), Error> {
    let table = Answer("feedback");
    let feedback_ids = table.texts(batch, "feedback_id")?;
    let request_ids = table.texts(batch, "request_id")?;
    let times = table.times(batch, "ts")?;
    let ratings = table.numbers(batch, "rating")?;
    let corrected = table.flags(batch, "corrected")?;
    for i in 0..batch.num_rows() {
        said.push(Said {
            ts: to_time(times.value(i))?,
            feedback_id: feedback_ids.value(i).to_owned(),
            request_id: request_ids.value(i).to_owned(),
            rating: match ratings.is_valid(i) {
                true => u8::try_from(ratings.value(i)).ok(),
                false => None,
            },
            is_correction: corrected.value(i),
        });
    }
    Ok(())
}
