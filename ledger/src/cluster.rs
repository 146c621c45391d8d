//! Questions on a Ballista cluster: planned here, computed by its executors, for ledgers that one machine is too small for.
//!
//! Executors as they are built know Parquet files, and neither Delta tables nor logs. So a table is given to them as the files of its
//! newest version, after the logs of this machine were published: what is asked is asked of a version.

use std::sync::Arc;

use ballista::prelude::{SessionConfigExt, SessionContextExt};
use deltalake::datafusion::arrow::datatypes::{DataType, TimeUnit};
use deltalake::datafusion::catalog::TableProvider;
use deltalake::datafusion::common::DFSchema;
use deltalake::datafusion::dataframe::DataFrame;
use deltalake::datafusion::datasource::file_format::parquet::ParquetFormat;
use deltalake::datafusion::datasource::listing::{
    ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl,
};
use deltalake::datafusion::error::DataFusionError;
use deltalake::datafusion::execution::SessionStateBuilder;
use deltalake::datafusion::logical_expr::{EmptyRelation, LogicalPlan, cast, col};
use deltalake::datafusion::prelude::{SessionConfig, SessionContext};
use url::Url;

use crate::error::Error;
use crate::layout::{DAY, without_day};
use crate::ledger::Ledger;
use crate::schema::Table;
use crate::session::{self, Answer};
use crate::table::Handle;

impl Ledger {
    /// As [`Ledger::sql_stream`], by the cluster whose scheduler is at `url` (`df://host:50050`). Its executors have to reach the store:
    /// a folder at the same path, or a bucket by their own environment.
    pub async fn sql_on_cluster(&self, url: &str, query: &str) -> Result<Answer, Error> {
        let wrong = |e: DataFusionError| Error::Cluster {
            url: url.to_owned(),
            what: e.strip_backtrace(),
        };
        self.publish().await?;
        let config = SessionConfig::new_with_ballista().with_information_schema(true);
        let state = SessionStateBuilder::new()
            .with_config(config)
            .with_default_features()
            .build();
        let context = SessionContext::remote_with_state(url, state).await;
        let context = context.map_err(wrong)?;
        for table in Table::ALL {
            let provider = provider(&context, self.handle(table))
                .await?
                .map_err(wrong)?;
            context
                .register_table(table.name(), provider)
                .map_err(wrong)?;
        }
        let asked = async { session::ask(&context, query).await?.begun().await };
        asked.await.map_err(|error| match error {
            // What gRPC says of a connection comes as any other error of a question.
            Error::Query(what) | Error::Unreadable(what) if what.contains("tonic::") => {
                Error::Cluster {
                    url: url.to_owned(),
                    what,
                }
            }
            error => error,
        })
    }
}

type Provider = Result<Arc<dyn TableProvider>, DataFusionError>;

/// A table's newest version, as its files.
async fn provider(context: &SessionContext, handle: &Handle) -> Result<Provider, Error> {
    let place = handle.place();
    let base = match place.as_bucket() {
        Some(bucket) => {
            context.register_object_store(bucket.url(), bucket.objects());
            bucket.table(handle.table().name())?
        }
        None => Url::from_directory_path(place.shown()).map_err(|()| Error::Url {
            url: place.shown().display().to_string(),
            what: "is no absolute path".to_owned(),
        })?,
    };
    let parts = handle.parts().await?;
    let files = parts.iter().map(|part| {
        let url = base.join(&part.path);
        url.map_err(|e| DataFusionError::External(Box::new(e)))
            .and_then(|url| ListingTableUrl::parse(url.as_str()))
    });
    Ok(files
        .collect::<Result<Vec<_>, _>>()
        .and_then(|files| view(context, handle, files)))
}

fn view(context: &SessionContext, handle: &Handle, files: Vec<ListingTableUrl>) -> Provider {
    let columns = without_day(handle.schema());
    let frame = if files.is_empty() {
        let nothing = LogicalPlan::EmptyRelation(EmptyRelation {
            produce_one_row: false,
            schema: Arc::new(DFSchema::try_from(columns)?),
        });
        DataFrame::new(context.state(), nothing)
    } else {
        let options = ListingOptions::new(Arc::new(ParquetFormat::default()));
        let config = ListingTableConfig::new_with_multi_paths(files)
            .with_listing_options(options)
            .with_schema(columns);
        context.read_table(Arc::new(ListingTable::try_new(config)?))?
    };
    // It is in the files' names, and not in the files.
    let plain = DataType::Timestamp(TimeUnit::Microsecond, None);
    Ok(match handle.is_by_day() {
        true => frame
            .with_column(DAY, cast(cast(col("ts"), plain), DataType::Date32))?
            .into_view(),
        false => frame.into_view(),
    })
}
