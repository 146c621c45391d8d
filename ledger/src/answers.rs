//! Answers: the tables' rows by Rust types, and SQL. Rows that are still in a log are among them.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use arrow::error::ArrowError;
use chrono::{DateTime, Utc};
use deltalake::datafusion::catalog::TableProvider;
use deltalake::datafusion::prelude::SessionContext;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::ledger::{Ledger, blocking};
use crate::queries::{
    ConversationQuery, ExchangeQuery, FeedbackQuery, WindowQuery, of_ids, quoted,
};
use crate::rows::{Exchange, Feedback, Run, Window, standing};
use crate::schema::{Table, texts};
use crate::session::Answer;
use crate::traffic::{Traffic, TrafficQuery};
use crate::wal::pending::{self, Pending};

/// Of exchanges.
const ORDER: &str = "ts, replica, seq";
/// Tries of a question whose files all can be read, afterwards.
const TRIES: usize = 3;

/// What a question to a table could see at one moment. Another one later sees other rows only if the mark is another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    version: u64,
    logs: Vec<(PathBuf, u64)>,
}

/// How much a table has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Size {
    /// Rows, those that are still in a log among them.
    pub rows: u64,
    /// Files of its newest version.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The number of its commits.
    pub version: u64,
}

/// The tables at one version each, without the rows that are still in a log: what can be read again later, by any engine.
pub struct Snapshot {
    ledger: Ledger,
    tables: Vec<(Table, u64, Arc<dyn TableProvider>)>,
}

impl Ledger {
    /// Exchanges in the order (ts, replica, seq). A row is visible from the moment that it is in its process's log. It gets there
    /// some milliseconds after its `ts`, two processes' rows out of order, so that whoever reads on from a cursor stays
    /// [`Ledger::settled`] behind the present.
    pub async fn exchanges(&self, q: &ExchangeQuery) -> Result<Vec<Exchange>, Error> {
        self.rows(Table::Exchanges, &exchanges(q)).await
    }

    /// Conversations in the order (ts, replica, seq), or its reverse.
    pub async fn conversations(&self, q: &ConversationQuery) -> Result<Vec<Exchange>, Error> {
        let made = q.request_id.as_deref().and_then(|id| self.made_at(id));
        self.rows(Table::Exchanges, &conversations(q, made)).await
    }

    /// An exchange by its id.
    pub async fn exchange(&self, id: &str) -> Result<Option<Exchange>, Error> {
        Ok(self.exchanges_of(&[id]).await?.pop())
    }

    /// Some exchanges by their ids, in the order (ts, replica, seq); those that are not there are left out.
    pub async fn exchanges_of(&self, ids: &[&str]) -> Result<Vec<Exchange>, Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let made: Vec<DateTime<Utc>> = ids.iter().filter_map(|id| self.made_at(id)).collect();
        let query = select(Table::Exchanges, &of_ids(ids, &made), ORDER, None);
        self.rows(Table::Exchanges, &query).await
    }

    /// Feedback in the order of its time, without what whoever said it took back.
    pub async fn feedback(&self, q: &FeedbackQuery) -> Result<Vec<Feedback>, Error> {
        Ok(standing(self.rows(Table::Feedback, &feedback(q)).await?))
    }

    /// A stream's states, oldest first.
    pub async fn windows(&self, q: &WindowQuery) -> Result<Vec<Window>, Error> {
        let query = select(Table::Windows, &q.conditions(), "ts desc", q.limit);
        let mut windows = self.rows(Table::Windows, &query).await?;
        windows.reverse();
        Ok(windows)
    }

    /// The newest state of each stream of each adapter of a task.
    pub async fn stream_states(&self, task: &str) -> Result<Vec<Window>, Error> {
        let query = format!(
            "select * from (select *, row_number() over (partition by adapter, stream order by ts desc) as place \
             from windows where task = {}) where place = 1 order by adapter, stream",
            quoted(task)
        );
        self.rows(Table::Windows, &query).await
    }

    /// How a task's adapters answered apps since a time: a row an adapter, the busiest first.
    pub async fn traffic(&self, q: &TrafficQuery) -> Result<Vec<Traffic>, Error> {
        self.rows(Table::Exchanges, &q.sql()).await
    }

    /// The newest row of every run, oldest run first.
    pub async fn runs(&self) -> Result<Vec<Run>, Error> {
        // Which are the newest is known by two small columns: the reports of all others are never read.
        let query = "select runs.* from runs join \
                     (select run_id as newest_id, min(ts) as begun, max(ts) as newest from runs group by run_id) \
                     on run_id = newest_id and ts = newest order by begun, run_id";
        let mut runs: Vec<Run> = self.rows(Table::Runs, query).await?;
        runs.dedup_by(|next, run| next.run_id == run.run_id);
        Ok(runs)
    }

    /// The newest row of a run.
    pub async fn run(&self, id: &str) -> Result<Option<Run>, Error> {
        let of_id = [format!("run_id = {}", quoted(id))];
        let query = select(Table::Runs, &of_id, "ts desc", Some(1));
        Ok(self.rows(Table::Runs, &query).await?.pop())
    }

    /// A table's version: the number of its commits.
    pub async fn table_version(&self, table: Table) -> Result<u64, Error> {
        self.handle(table).version().await
    }

    /// How much a table has.
    pub async fn size(&self, table: Table) -> Result<Size, Error> {
        let counted = format!("select count(*) from {table}");
        let counted = self.ask(&counted, &[table]).await?;
        let parts = self.handle(table).parts().await?;
        let column = counted.first().map(|batch| batch.column(0));
        let rows = column.and_then(|column| column.as_primitive_opt::<Int64Type>());
        let rows = rows.map_or(0, |rows| rows.values().iter().sum());
        Ok(Size {
            rows: u64::try_from(rows).unwrap_or_default(),
            files: parts.len() as u64,
            bytes: parts.iter().map(|part| part.bytes).sum(),
            version: self.table_version(table).await?,
        })
    }

    /// What a question to a table can see now.
    pub async fn mark(&self, table: Table) -> Result<Mark, Error> {
        let logs = self.pending(table).await?.lengths();
        let version = self.table_version(table).await?;
        Ok(Mark { version, logs })
    }

    /// Answers a question over `exchanges`, `feedback`, `windows`, `runs`; refuses whatever would change something.
    pub async fn sql(&self, query: &str) -> Result<Vec<RecordBatch>, Error> {
        self.ask(query, &Table::ALL).await
    }

    /// The same, as the rows come: an answer of any size. A file that turns out to be damaged when some have come ends it.
    pub async fn sql_stream(&self, query: &str) -> Result<Answer, Error> {
        self.without_damaged(query, &Table::ALL, Answer::begun)
            .await
    }

    /// The texts of a question's first and second column, row by row.
    pub(crate) async fn each_text(
        &self,
        query: &str,
        mut take: impl FnMut(&str, Option<&str>),
    ) -> Result<(), Error> {
        let mut answer = self.sql_stream(query).await?;
        while let Some(batch) = answer.next().await? {
            let wrong = |e: ArrowError| Error::Query(e.to_string());
            let first = texts(batch.column(0)).map_err(wrong)?;
            let second = match batch.num_columns() {
                0 | 1 => None,
                _ => Some(texts(batch.column(1)).map_err(wrong)?),
            };
            for row in (0..batch.num_rows()).filter(|row| first.is_valid(*row)) {
                let second = second.as_ref().filter(|texts| texts.is_valid(row));
                take(first.value(row), second.map(|texts| texts.value(row)));
            }
        }
        Ok(())
    }

    /// The tables once they have every row that is in a log of this machine now.
    pub async fn snapshot(&self) -> Result<Snapshot, Error> {
        self.publish().await?;
        let mut tables = Vec::new();
        // In this order no feedback is there whose exchange is not.
        for table in Table::ALL.into_iter().rev() {
            let seen = self.handle(table).see(&[]).await?;
            tables.push((table, seen.version, seen.provider));
        }
        let ledger = self.clone();
        Ok(Snapshot { ledger, tables })
    }

    async fn rows<T: DeserializeOwned>(&self, table: Table, query: &str) -> Result<Vec<T>, Error> {
        table.decode(&self.ask(query, &[table]).await?)
    }

    async fn ask(&self, query: &str, tables: &[Table]) -> Result<Vec<RecordBatch>, Error> {
        self.without_damaged(query, tables, Answer::collect).await
    }

    /// A file that cannot be read is left out, and told: it must not take the others' rows along. One that went while it was read, with
    /// what somebody wanted to be forgotten, is not in the newest version.
    async fn without_damaged<T, F: Future<Output = Result<T, Error>>>(
        &self,
        query: &str,
        tables: &[Table],
        take: impl Fn(Answer) -> F,
    ) -> Result<T, Error> {
        let mut tries = 1;
        loop {
            let visible = self.all_visible(tables).await?;
            let taken = match self.sessions().answer(query, visible).await {
                Ok(answer) => take(answer).await,
                Err(error) => Err(error),
            };
            match taken {
                Err(Error::Unreadable(_)) if self.leave_damaged_out(tables).await? > 0 => {}
                Err(Error::Unreadable(_)) if tries < TRIES => tries += 1,
                taken => return taken,
            }
        }
    }

    async fn leave_damaged_out(&self, tables: &[Table]) -> Result<usize, Error> {
        let mut found = 0;
        for table in tables {
            found += self.handle(*table).leave_damaged_out().await?;
        }
        Ok(found)
    }

    async fn all_visible(
        &self,
        tables: &[Table],
    ) -> Result<Vec<(Table, Arc<dyn TableProvider>)>, Error> {
        let mut visible = Vec::new();
        // In this order no feedback is there whose exchange is not.
        for table in tables.iter().rev() {
            visible.push((*table, self.visible(*table).await?));
        }
        Ok(visible)
    }

    /// A table and the rows that are on their way into it. The order of reading is what makes it exact: [`pending`] says why.
    async fn visible(&self, table: Table) -> Result<Arc<dyn TableProvider>, Error> {
        let pending = self.pending(table).await?;
        let seen = self.handle(table).see(&pending.replicas()).await?;
        let wrong =
            |e: deltalake::datafusion::error::DataFusionError| Error::Query(e.strip_backtrace());
        let logs = pending.provider(seen.provider.schema(), &seen.published);
        let Some(logs) = logs.map_err(wrong)? else {
            return Ok(seen.provider);
        };
        let context = SessionContext::new();
        let logs = context.read_table(logs).map_err(wrong)?;
        let both = context.read_table(seen.provider).map_err(wrong)?;
        Ok(both.union(logs).map_err(wrong)?.into_view())
    }

    async fn pending(&self, table: Table) -> Result<Pending, Error> {
        let local = self.local();
        blocking(move || pending::find(&local.join("wal"), table)).await
    }
}

impl Snapshot {
    /// The version that a table is read at.
    pub fn version(&self, table: Table) -> u64 {
        let found = self.tables.iter().find(|(name, ..)| *name == table);
        found.map_or(0, |(_, version, _)| *version)
    }

    /// As [`Ledger::exchanges`].
    pub async fn exchanges(&self, q: &ExchangeQuery) -> Result<Vec<Exchange>, Error> {
        Table::Exchanges.decode(&self.ask(&exchanges(q)).await?)
    }

    /// As [`Ledger::feedback`].
    pub async fn feedback(&self, q: &FeedbackQuery) -> Result<Vec<Feedback>, Error> {
        Ok(standing(
            Table::Feedback.decode(&self.ask(&feedback(q)).await?)?,
        ))
    }

    async fn ask(&self, query: &str) -> Result<Vec<RecordBatch>, Error> {
        let tables = self.tables.iter();
        let tables = tables.map(|(table, _, provider)| (*table, Arc::clone(provider)));
        let answer = self.ledger.sessions().answer(query, tables.collect()).await;
        answer?.collect().await
    }
}

fn exchanges(q: &ExchangeQuery) -> String {
    select(Table::Exchanges, &q.conditions(), ORDER, q.limit)
}

fn conversations(q: &ConversationQuery, made: Option<DateTime<Utc>>) -> String {
    let (conditions, order) = q.conditions_and_order(made);
    select(Table::Exchanges, &conditions, order, q.limit)
}

fn feedback(q: &FeedbackQuery) -> String {
    select(Table::Feedback, &q.conditions(), "ts, feedback_id", None)
}

fn select(table: Table, conditions: &[String], order: &str, limit: Option<usize>) -> String {
    let mut query = format!("select * from {table}");
    if !conditions.is_empty() {
        query.push_str(&format!(" where {}", conditions.join(" and ")));
    }
    query.push_str(&format!(" order by {order}"));
    if let Some(limit) = limit {
        query.push_str(&format!(" limit {limit}"));
    }
    query
}
