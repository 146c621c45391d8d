//! What a job trains on: its files as tokens, and the adapter that it goes on from.

use retune_ledger::{JobLevel, JobMethod};
use retune_task::{ModelName, Task};
use retune_trainer::{LoraAdapter, LoraSettings};

use super::lines::{self, Lines};
use super::{Work, recipe};
use crate::train::{Lesson, Material, Split};
use crate::{Encoder, Error};

/// Reads a file.
type Read<T> = fn(&Encoder, &Task, &[u8]) -> Result<Lines<T>, Error>;

impl Work<'_> {
    /// What the files have to learn, and how to train on it.
    pub(super) async fn lesson(
        &mut self,
        encoder: &Encoder,
        hidden: usize,
    ) -> Result<(Lesson, LoraSettings), Error> {
        let from = self.from().await?;
        let job = self.book.state().job.clone();
        let of = match job.method {
            JobMethod::Supervised => {
                Material::Examples(self.split(encoder, lines::examples).await?)
            }
            JobMethod::Dpo => {
                let pairs = self.split(encoder, lines::preferences).await?;
                Material::Preferences(pairs, recipe::dpo(&job))
            }
        };
        let (count, _) = of.counts();
        let (chosen, mut settings) = recipe::recipe(&job, count, hidden);
        if let Some(from) = &from {
            (settings.r, settings.alpha) = (from.r(), from.alpha());
            settings.target_modules = from.target_modules();
        }
        self.book.next().settings = Some(chosen);
        let what = match job.method {
            JobMethod::Supervised => "examples",
            JobMethod::Dpo => "preferences",
        };
        let message = format!("Training on {count} {what} for {} epochs", chosen.n_epochs);
        self.book.say(JobLevel::Info, message, None);
        self.book.write().await?;
        let base = self.o.base.clone();
        Ok((Lesson { base, from, of }, settings))
    }

    /// The adapter to go on from.
    async fn from(&self) -> Result<Option<LoraAdapter>, Error> {
        let Some(name) = &self.book.state().job.from else {
            return Ok(None);
        };
        let unknown = || Error::NoAdapter(name.clone());
        let Some(ModelName::Adapter { task, number }) = ModelName::parse(name) else {
            return Err(unknown());
        };
        let mut adapters = self.o.ledger.adapters(&task).await?.into_iter();
        let adapter = adapters.find(|adapter| adapter.number == number);
        let adapter = adapter.ok_or_else(unknown)?;
        self.o.ledger.verify_adapter(&adapter).await?;
        Ok(Some(LoraAdapter::load(&adapter.folder)?))
    }

    /// What the job's files are made of.
    async fn split<T>(&mut self, encoder: &Encoder, read: Read<T>) -> Result<Split<T>, Error> {
        let job = self.book.state().job.clone();
        let train = self.file(encoder, &job.training_file, read).await?;
        let held_out = match &job.validation_file {
            Some(file) => self.file(encoder, file, read).await?,
            None => Vec::new(),
        };
        Ok(Split {
            train,
            development: Vec::new(),
            held_out,
        })
    }

    async fn file<T>(
        &mut self,
        encoder: &Encoder,
        id: &str,
        read: Read<T>,
    ) -> Result<Vec<T>, Error> {
        let bytes = self.o.ledger.upload_content(id).await?;
        let bytes = bytes.ok_or_else(|| Error::NoFile(id.to_owned()))?;
        let lines = read(encoder, &self.task, &bytes)?;
        let too_long = lines.too_long.len();
        if lines.examples.is_empty() {
            let context = encoder.context();
            return Err(Error::NoExamples { too_long, context });
        }
        if too_long > 0 {
            let shown: Vec<String> = lines
                .too_long
                .iter()
                .take(10)
                .map(usize::to_string)
                .collect();
            let message = format!(
                "{too_long} lines of {id} are longer than the model's {} tokens and were left out: {}{}",
                encoder.context(),
                shown.join(", "),
                if too_long > shown.len() { ", …" } else { "" },
            );
            self.book.say(JobLevel::Warn, message, None);
        }
        Ok(lines.examples)
    }
}
