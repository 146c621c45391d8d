//! A store at a URL: S3 and what speaks it, Google Cloud Storage, Azure.
//!
//! Nothing is asked of it but to create an object if it is absent, which all of them promise: no lock, no rename, no table of commits
//! beside it. Credentials come from the environment, by each provider's own variables.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Once};
use std::time::Duration;

use deltalake::DeltaResult;
use deltalake::logstore::object_store::aws::AmazonS3Builder;
use deltalake::logstore::object_store::azure::MicrosoftAzureBuilder;
use deltalake::logstore::object_store::gcp::GoogleCloudStorageBuilder;
use deltalake::logstore::object_store::path::Path;
use deltalake::logstore::object_store::{
    self, ObjectStore, ObjectStoreExt, ObjectStoreScheme, PutMode, PutOptions, RetryConfig,
};
use deltalake::logstore::{
    LogStore, LogStoreFactory, ObjectStoreFactory, ObjectStoreRef, StorageConfig, default_logstore,
    logstore_factories, object_store_factories,
};
use futures::StreamExt;
use tokio::runtime::Handle;
use url::Url;

use crate::error::Error;

/// URLs of stores begin with one of these.
const SCHEMES: [&str; 4] = ["s3", "gs", "az", "abfss"];
/// What the environment's variables begin with that say how the providers are reached.
const VARIABLES: [&str; 4] = ["AWS_", "GOOGLE_", "AZURE_", "OBJECT_STORE_"];

/// How often, and for how long, a request is tried again: whoever waits for it has patience of its own.
const RETRIES: usize = 3;
const RETRIED_WITHIN: Duration = Duration::from_secs(15);

/// Objects below a URL.
pub(crate) struct Bucket {
    url: Url,
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    /// Where its connections live; work on files is done on threads that may wait.
    runtime: Handle,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bucket").field(&self.url.as_str()).finish()
    }
}

/// How the providers are reached, as the environment says: names in lower case.
pub(crate) fn options() -> HashMap<String, String> {
    let variables = std::env::vars_os();
    let text = variables.filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    text.filter(|(name, _)| VARIABLES.iter().any(|v| name.starts_with(v)))
        .map(|(name, value)| (name.to_lowercase(), value))
        .collect()
}

impl Bucket {
    /// The URL's objects; nothing is asked of the network yet.
    pub(crate) fn open(url: &str) -> Result<Self, Error> {
        let wrong = |what: String| Error::Url {
            url: url.to_owned(),
            what,
        };
        let mut parsed = Url::parse(url).map_err(|e| wrong(e.to_string()))?;
        if !SCHEMES.contains(&parsed.scheme()) {
            return Err(wrong(format!(
                "expected file: and a folder, or one of {}: with a bucket",
                SCHEMES.join(":, ")
            )));
        }
        // So that what is joined to it is below it.
        if !parsed.path().ends_with('/') {
            parsed.set_path(&format!("{}/", parsed.path()));
        }
        let (objects, prefix) = objects(&parsed, &options()).map_err(|e| wrong(e.to_string()))?;
        teach_delta();
        Ok(Self {
            url: parsed,
            objects,
            prefix,
            runtime: Handle::current(),
        })
    }

    /// With a slash at its end.
    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// All objects of the provider's bucket.
    #[cfg(feature = "ballista")]
    pub(crate) fn objects(&self) -> ObjectStoreRef {
        self.objects.clone()
    }

    /// Where a table is.
    pub(crate) fn table(&self, name: &str) -> Result<Url, Error> {
        self.url.join(&format!("{name}/")).map_err(|e| Error::Url {
            url: self.url.to_string(),
            what: e.to_string(),
        })
    }

    fn at(&self, name: &str) -> Path {
        let parts = name.split('/').filter(|part| !part.is_empty());
        parts.fold(self.prefix.clone(), |path, part| path.join(part))
    }

    fn error(&self, name: &str) -> impl FnOnce(object_store::Error) -> Error {
        let path = format!("{}{name}", self.url);
        move |source| Error::Object {
            path,
            source: Box::new(source),
        }
    }

    /// Waits for the network: not for an async thread.
    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Creates an object unless there is one; whether it was created.
    pub(crate) fn create(&self, name: &str, bytes: &[u8]) -> Result<bool, Error> {
        let path = self.at(name);
        let options = PutOptions::from(PutMode::Create);
        let put = self.objects.put_opts(&path, bytes.to_vec().into(), options);
        match self.wait(put) {
            Ok(_) => Ok(true),
            // An earlier try of this call may have created it, and its answer been lost.
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) => Ok(self.read(name)?.as_deref() == Some(bytes)),
            Err(error) => Err(self.error(name)(error)),
        }
    }

    /// Writes an object, whatever was there; of any length.
    pub(crate) fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), Error> {
        let put = self.wait(self.objects.put(&self.at(name), bytes.into()));
        put.map(drop).map_err(self.error(name))
    }

    /// An object's bytes; none where there is none.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let path = self.at(name);
        let read = async { self.objects.get(&path).await?.bytes().await };
        match self.wait(read) {
            Ok(bytes) => Ok(Some(bytes.to_vec())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.error(name)(error)),
        }
    }

    /// Names right below one, sorted.
    pub(crate) fn names(&self, name: &str) -> Result<Vec<String>, Error> {
        let listed = self.wait(self.objects.list_with_delimiter(Some(&self.at(name))));
        let listed = listed.map_err(self.error(name))?;
        let folders = listed.common_prefixes.iter().filter_map(Path::filename);
        let objects = listed.objects.iter().filter_map(|o| o.location.filename());
        let mut names: Vec<String> = folders.chain(objects).map(str::to_owned).collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Deletes some objects; those that are gone are no error.
    pub(crate) fn delete(&self, names: &[String]) -> Result<(), Error> {
        let paths: Vec<_> = names.iter().map(|name| Ok(self.at(name))).collect();
        let deleting = self
            .objects
            .delete_stream(futures::stream::iter(paths).boxed());
        for deleted in self.wait(deleting.collect::<Vec<_>>()) {
            match deleted {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(self.error("")(error)),
            }
        }
        Ok(())
    }
}

/// A provider's objects, and the URL's place among them.
fn objects(
    url: &Url,
    options: &HashMap<String, String>,
) -> object_store::Result<(ObjectStoreRef, Path)> {
    let retry = RetryConfig {
        max_retries: RETRIES,
        retry_timeout: RETRIED_WITHIN,
        ..RetryConfig::default()
    };
    let (scheme, path) = ObjectStoreScheme::parse(url)?;
    // Each provider picks out what it knows.
    macro_rules! built {
        ($builder:ty) => {{
            let builder = <$builder>::new().with_url(url.as_str()).with_retry(retry);
            let builder = options
                .iter()
                .fold(builder, |builder, (key, value)| match key.parse() {
                    Ok(key) => builder.with_config(key, value),
                    Err(_) => builder,
                });
            Arc::new(builder.build()?) as ObjectStoreRef
        }};
    }
    let objects = match scheme {
        ObjectStoreScheme::AmazonS3 => built!(AmazonS3Builder),
        ObjectStoreScheme::GoogleCloudStorage => built!(GoogleCloudStorageBuilder),
        ObjectStoreScheme::MicrosoftAzure => built!(MicrosoftAzureBuilder),
        _ => {
            return Err(object_store::Error::NotImplemented {
                operation: url.scheme().to_owned(),
                implementer: "Retune".to_owned(),
            });
        }
    };
    Ok((objects, path))
}

/// Tables at these URLs, for deltalake, which knows folders alone by itself: its commits, too, are objects created if absent.
#[derive(Debug)]
struct Urls;

impl ObjectStoreFactory for Urls {
    fn parse_url_opts(
        &self,
        url: &Url,
        config: &StorageConfig,
    ) -> DeltaResult<(ObjectStoreRef, Path)> {
        Ok(objects(url, &config.raw)?)
    }
}

impl LogStoreFactory for Urls {
    fn with_options(
        &self,
        prefixed: ObjectStoreRef,
        root: ObjectStoreRef,
        location: &Url,
        options: &StorageConfig,
    ) -> DeltaResult<Arc<dyn LogStore>> {
        Ok(default_logstore(prefixed, root, location, options))
    }
}

fn teach_delta() {
    static TAUGHT: Once = Once::new();
    TAUGHT.call_once(|| {
        let schemes = SCHEMES
            .iter()
            .map(|scheme| Url::parse(&format!("{scheme}://")));
        for scheme in schemes.flatten() {
            object_store_factories().insert(scheme.clone(), Arc::new(Urls));
            logstore_factories().insert(scheme, Arc::new(Urls));
        }
    });
}
