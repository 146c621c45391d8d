//! Which adapter answers for a model's name: the table made of the tasks and their stages, and the look-up in it.
//!
//! Pure: the table is a value, made anew when stages change, and swapped whole. A request keeps the route that it began with.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use retune_ledger::{AdapterRef, Stage, Stages};
use retune_task::{Config, ModelName, PromptKind, Task};
use sha2::{Digest, Sha256};

use crate::error::Error;

/// Every model that can be asked for, at one moment.
pub(crate) struct Table {
    /// The base's id.
    pub(crate) base: String,
    tasks: HashMap<String, TaskRoutes>,
    /// Tasks in the configuration's order.
    order: Vec<String>,
}

/// A task of the configuration.
#[derive(Clone)]
pub(crate) struct TaskRef {
    config: Arc<Config>,
    index: usize,
}

impl std::ops::Deref for TaskRef {
    type Target = Task;

    fn deref(&self) -> &Task {
        &self.config.tasks[self.index]
    }
}

/// One task's models.
pub(crate) struct TaskRoutes {
    pub(crate) task: TaskRef,
    pub(crate) stages: Stages,
    pub(crate) adapters: BTreeMap<u32, Arc<AdapterRef>>,
}

/// Who answers a request.
#[derive(Clone)]
pub(crate) struct Route {
    /// The resolved name: `support@3`, `support@base`, or the base's id.
    pub(crate) name: String,
    /// `None` for the bare base.
    pub(crate) task: Option<TaskRef>,
    pub(crate) prompt: PromptKind,
    /// `None`: the base's own weights.
    pub(crate) adapter: Option<Arc<AdapterRef>>,
    /// `champion`, `canary`, ..., `baseline`, or `base`.
    pub(crate) stage: String,
}

impl Route {
    /// The task's name, empty for the bare base: a metric's label.
    pub(crate) fn task_name(&self) -> &str {
        self.task.as_ref().map_or("", |t| t.name.as_str())
    }

    pub(crate) fn digest(&self) -> Option<&str> {
        self.adapter.as_ref().map(|a| a.manifest.digest.as_str())
    }
}

impl TaskRoutes {
    /// An adapter's stage; those that were never moved are candidates.
    pub(crate) fn stage(&self, number: u32) -> Stage {
        self.stages
            .stage_of
            .get(&number)
            .copied()
            .unwrap_or(Stage::Candidate)
    }

    /// The champion's name.
    pub(crate) fn champion(&self) -> String {
        match self.stages.champion {
            Some(number) => adapter_name(&self.task.name, number),
            None => baseline_name(&self.task.name),
        }
    }

    /// Adapters that traffic may reach at any moment: the champion, and the canary.
    pub(crate) fn in_traffic(&self) -> impl Iterator<Item = &Arc<AdapterRef>> {
        let canary = self.stages.canary.as_ref().map(|(number, _)| *number);
        self.stages
            .champion
            .into_iter()
            .chain(canary)
            .filter_map(|n| self.adapters.get(&n))
    }

    fn baseline(&self) -> Route {
        Route {
            name: baseline_name(&self.task.name),
            task: Some(self.task.clone()),
            prompt: PromptKind::Full,
            adapter: None,
            stage: "baseline".to_owned(),
        }
    }

    fn adapter(&self, number: u32) -> Option<Route> {
        Some(Route {
            name: adapter_name(&self.task.name, number),
            task: Some(self.task.clone()),
            prompt: PromptKind::Adapter,
            adapter: Some(Arc::clone(self.adapters.get(&number)?)),
            stage: self.stage(number).to_string(),
        })
    }

    /// The canary for its share of the keys, the champion for the rest.
    fn routed(&self, sticky_key: &str) -> Option<Route> {
        if let Some((number, share)) = &self.stages.canary
            && fraction(&self.task.name, sticky_key) < *share
            && let Some(route) = self.adapter(*number)
        {
            return Some(route);
        }
        match self.stages.champion {
            Some(number) => self.adapter(number),
            None => Some(self.baseline()),
        }
    }
}

impl Table {
    /// `state`: each task's stages and adapters, in the configuration's order.
    pub(crate) fn new(
        config: &Arc<Config>,
        base: &str,
        state: Vec<(Stages, Vec<AdapterRef>)>,
    ) -> Self {
        let mut tasks = HashMap::new();
        for (index, (stages, adapters)) in state.into_iter().enumerate() {
            let task = TaskRef {
                config: Arc::clone(config),
                index,
            };
            let adapters = adapters
                .into_iter()
                .map(|a| (a.number, Arc::new(a)))
                .collect();
            tasks.insert(
                task.name.clone(),
                TaskRoutes {
                    task,
                    stages,
                    adapters,
                },
            );
        }
        let order = config.tasks.iter().map(|t| t.name.clone()).collect();
        Self {
            base: base.to_owned(),
            tasks,
            order,
        }
    }

    /// Tasks in the configuration's order.
    pub(crate) fn tasks(&self) -> impl Iterator<Item = &TaskRoutes> {
        self.order.iter().filter_map(|name| self.tasks.get(name))
    }

    pub(crate) fn task(&self, name: &str) -> Option<&TaskRoutes> {
        self.tasks.get(name)
    }

    /// Who answers for `model`.
    pub(crate) fn resolve(&self, model: &str, sticky_key: &str) -> Result<Route, Error> {
        let unknown = || Error::UnknownModel(model.to_owned());
        if model == self.base {
            return Ok(Route {
                name: self.base.clone(),
                task: None,
                prompt: PromptKind::Full,
                adapter: None,
                stage: "base".to_owned(),
            });
        }
        let route = match ModelName::parse(model).ok_or_else(unknown)? {
            ModelName::Bare(task) => self.tasks.get(&task).and_then(|t| t.routed(sticky_key)),
            ModelName::Baseline(task) => self.tasks.get(&task).map(TaskRoutes::baseline),
            ModelName::Adapter { task, number } => {
                self.tasks.get(&task).and_then(|t| t.adapter(number))
            }
        };
        route.ok_or_else(unknown)
    }
}

pub(crate) fn adapter_name(task: &str, number: u32) -> String {
    ModelName::Adapter {
        task: task.to_owned(),
        number,
    }
    .to_string()
}

pub(crate) fn baseline_name(task: &str) -> String {
    ModelName::Baseline(task.to_owned()).to_string()
}

/// A key's fixed place in 0..1, another one for each task.
fn fraction(task: &str, key: &str) -> f64 {
    let digest = Sha256::new()
        .chain_update(task)
        .chain_update([0])
        .chain_update(key)
        .finalize();
    let mut bytes = [0u8; 4];
    bytes.copy_from_slice(&digest[..4]);
    f64::from(u32::from_be_bytes(bytes)) / 4_294_967_296.0
}

#[cfg(test)]
mod tests {
    use super::fraction;

    #[test]
    fn a_share_of_the_keys_and_always_the_same_ones() {
        let keys: Vec<String> = (0..4000).map(|i| format!("user-{i}")).collect();
        let chosen = |task| {
            keys.iter()
                .map(|k| fraction(task, k) < 0.1)
                .collect::<Vec<_>>()
        };
        let share = chosen("a").iter().filter(|c| **c).count();
        assert!((320..480).contains(&share), "{share}");
        assert_eq!(chosen("a"), chosen("a"));
        assert_ne!(chosen("a"), chosen("b"));
        assert!(keys.iter().all(|k| (0.0..1.0).contains(&fraction("a", k))));
    }
}
