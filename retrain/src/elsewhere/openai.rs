//! A server with OpenAI's fine-tuning API that trains, and hands PEFT's two files out among a job's result files, as another Retune does.
//!
//! The job's id is kept in the folder: a run that is taken up again goes on waiting for it.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder};
use retune_ledger::ADAPTER_FILES;
use retune_task::{TrainerServer, hex};
use retune_trainer::{Progress, recommended_learning_rate};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::UnboundedSender;

use super::{DEVELOPMENT, Order, TRAIN, Told};
use crate::shape::Shape;
use crate::{Error, Limits};

const JOB: &str = "job.json";
/// Failures in a row to ask for a job before the run ends: it is taken up again.
const TRIES: u32 = 10;

pub(super) struct Job {
    http: Client,
    server: TrainerServer,
    key: Option<String>,
    body: Value,
    poll: Duration,
    folder: PathBuf,
}

impl Job {
    pub(super) fn of(
        order: &Order,
        server: &TrainerServer,
        limits: &Limits,
        folder: PathBuf,
    ) -> Result<Self, Error> {
        let settings = &order.settings;
        let suggested = recommended_learning_rate(Shape::of(&order.base)?.hidden);
        let run = order.run_id.rsplit('-').next().unwrap_or_default();
        let task: String = order.task.chars().take(48).collect();
        let hyperparameters = json!({
            "n_epochs": settings.epochs,
            "batch_size": settings.batch_size,
            "learning_rate_multiplier": settings.learning_rate / suggested,
        });
        let key = match &server.api_key_env {
            None => None,
            Some(name) => {
                let key = std::env::var(name).map_err(|_| Error::NoKey {
                    name: name.clone(),
                    whose: "trainer's",
                    setting: "trainer_api_key_env",
                });
                Some(key?)
            }
        };
        let http = Client::builder().timeout(limits.answer).build();
        Ok(Self {
            http: http.map_err(|source| unreachable(&server.url, source))?,
            server: server.clone(),
            key,
            body: json!({
                "model": server.model,
                "suffix": format!("{task}-{run}"),
                // What clients of JavaScript can hold.
                "seed": settings.seed % (1 << 31),
                "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            }),
            poll: limits.poll,
            folder,
        })
    }

    pub(super) async fn train(self, progress: UnboundedSender<Progress>) -> Result<PathBuf, Error> {
        let known = self.known().await?;
        let (id, files) = match known {
            Some(known) => known,
            None => self.create().await?,
        };
        let job = self.end_of(&id, &progress).await?;
        let adapter = self.fetch(&job).await?;
        // The examples are nobody's business any more there.
        for file in files {
            let path = format!("files/{file}");
            if let Err(error) = self.ask(self.request(Method::DELETE, &path), &path).await {
                tracing::warn!(%error, "examples stay on the server that trained on them");
            }
        }
        Ok(adapter)
    }

    /// The job that an earlier attempt created, if it is still there, and its files.
    async fn known(&self) -> Result<Option<(String, Vec<String>)>, Error> {
        let Ok(text) = std::fs::read(self.folder.join(JOB)) else {
            return Ok(None);
        };
        let known: Value = serde_json::from_slice(&text).unwrap_or_default();
        let Some(id) = known["id"].as_str() else {
            return Ok(None);
        };
        let path = format!("fine_tuning/jobs/{id}");
        match self.ask(self.request(Method::GET, &path), &path).await {
            Ok(job) if ["failed", "cancelled"].contains(&text_of(&job, "status")) => Ok(None),
            Ok(_) => {
                let files = known["files"].as_array().into_iter().flatten();
                let files = files.filter_map(|file| Some(file.as_str()?.to_owned()));
                Ok(Some((id.to_owned(), files.collect())))
            }
            Err(Error::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn create(&self) -> Result<(String, Vec<String>), Error> {
        let train = self.upload(TRAIN).await?;
        let development = self.upload(DEVELOPMENT).await?;
        let mut body = self.body.clone();
        body["training_file"] = json!(train);
        body["validation_file"] = json!(development);
        let path = "fine_tuning/jobs";
        let job = self
            .ask(self.request(Method::POST, path).json(&body), path)
            .await?;
        let id = text_of(&job, "id").to_owned();
        let files = vec![train, development];
        let note = self.folder.join(JOB);
        std::fs::write(&note, json!({"id": id, "files": files}).to_string())
            .map_err(Error::file(note))?;
        Ok((id, files))
    }

    async fn upload(&self, name: &str) -> Result<String, Error> {
        let path = self.folder.join(name);
        let content = std::fs::read(&path).map_err(Error::file(path))?;
        // No text has its own digest in it.
        let boundary = format!("retune-{}", hex(&Sha256::digest(&content)[..16]));
        let mut form = format!(
            "--{boundary}\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n\
             --{boundary}\r\ncontent-disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
             content-type: application/octet-stream\r\n\r\n"
        )
        .into_bytes();
        form.extend(content);
        form.extend(format!("\r\n--{boundary}--\r\n").into_bytes());
        let kind = format!("multipart/form-data; boundary={boundary}");
        let request = self.request(Method::POST, "files");
        let request = request.header("content-type", kind).body(form);
        Ok(text_of(&self.ask(request, "files").await?, "id").to_owned())
    }

    /// Waits for a job's end, telling its steps.
    async fn end_of(&self, id: &str, progress: &UnboundedSender<Progress>) -> Result<Value, Error> {
        let path = format!("fine_tuning/jobs/{id}");
        let (mut told, mut failures) = (0, 0);
        loop {
            let asked = async {
                let job = self.ask(self.request(Method::GET, &path), &path).await?;
                let events = format!("{path}/events?limit=100");
                let events = self
                    .ask(self.request(Method::GET, &events), &events)
                    .await?;
                Ok::<_, Error>((job, events))
            };
            match asked.await {
                Ok((job, events)) => {
                    failures = 0;
                    tell(&events, &mut told, progress);
                    match text_of(&job, "status") {
                        "succeeded" => return Ok(job),
                        end @ ("failed" | "cancelled") => {
                            let why = text_of(&job["error"], "message");
                            return Err(Error::Program {
                                program: self.server.url.clone(),
                                what: format!("ended its job {id} as {end}: {why}"),
                            });
                        }
                        _ => {}
                    }
                }
                Err(error) if failures == TRIES => return Err(error),
                Err(error) => {
                    failures += 1;
                    tracing::warn!(%error, "a fine-tuning job cannot be asked for; trying again");
                }
            }
            tokio::time::sleep(self.poll).await;
        }
    }

    /// PEFT's two files from a job's result files.
    async fn fetch(&self, job: &Value) -> Result<PathBuf, Error> {
        let adapter = self.folder.join("adapter");
        std::fs::create_dir_all(&adapter).map_err(Error::file(&adapter))?;
        let mut missing = ADAPTER_FILES.to_vec();
        let files = job["result_files"].as_array().into_iter().flatten();
        for id in files.filter_map(Value::as_str) {
            let path = format!("files/{id}");
            let file = self.ask(self.request(Method::GET, &path), &path).await?;
            let name = text_of(&file, "filename");
            let Some(place) = missing.iter().position(|wanted| *wanted == name) else {
                continue;
            };
            let path = format!("{path}/content");
            let response = self.send(self.request(Method::GET, &path), &path).await?;
            let bytes = response.bytes().await;
            let bytes = bytes.map_err(|source| unreachable(&self.server.url, source))?;
            let to = adapter.join(missing.swap_remove(place));
            std::fs::write(&to, bytes).map_err(Error::file(to))?;
        }
        if missing.is_empty() {
            return Ok(adapter);
        }
        Err(Error::Program {
            program: self.server.url.clone(),
            what: format!(
                "has no {} among the job's result files; a server is needed that hands out PEFT's files, such as another Retune",
                missing.join(" and no ")
            ),
        })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self
            .http
            .request(method, format!("{}/{path}", self.server.url));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    async fn send(&self, request: RequestBuilder, path: &str) -> Result<reqwest::Response, Error> {
        let sent = request.send().await;
        let response = sent.map_err(|source| unreachable(&self.server.url, source))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let said: Value = response.json().await.unwrap_or_default();
        Err(Error::Refused {
            request: format!("{}/{path}", self.server.url),
            status,
            message: text_of(&said["error"], "message").to_owned(),
        })
    }

    async fn ask(&self, request: RequestBuilder, path: &str) -> Result<Value, Error> {
        let response = self.send(request, path).await?;
        response.json().await.map_err(|error| Error::Unexpected {
            request: format!("{}/{path}", self.server.url),
            what: error.to_string(),
        })
    }
}

/// New steps among the newest events, in order.
fn tell(events: &Value, told: &mut u64, progress: &UnboundedSender<Progress>) {
    let metrics = |event: &Value| {
        let data = &event["data"];
        let step = data["step"].as_u64()?;
        let told = Told {
            step: usize::try_from(step).ok()?,
            steps: usize::try_from(data["total_steps"].as_u64().unwrap_or(step)).ok()?,
            epoch: 0.0,
            train_loss: data["train_loss"].as_f64(),
            development_loss: data["full_valid_loss"].as_f64(),
            learning_rate: data["learning_rate"].as_f64(),
            gradient_norm: data["gradient_norm"].as_f64(),
        };
        Some((step, told))
    };
    let events = events["data"].as_array().into_iter().flatten();
    let mut steps: Vec<(u64, Told)> = events.filter_map(metrics).collect();
    steps.sort_by_key(|(step, _)| *step);
    for (step, figures) in steps {
        if step > *told {
            *told = step;
            // Nobody may listen any more.
            drop(progress.send(figures.into()));
        }
    }
}

fn text_of<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn unreachable(url: &str, source: reqwest::Error) -> Error {
    Error::Unreachable {
        url: url.to_owned(),
        source,
    }
}
