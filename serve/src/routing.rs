//! Which adapter answers for a model's name: the table made of the tasks and their stages, and the look-up in it.
//!
//! Pure: the table is a value, made anew when stages change, and swapped whole. A request keeps the route that it began with.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use retune_ledger::{AdapterRef, Stages};
use retune_task::{ModelName, PromptKind, Task, fraction};

use crate::error::Error;

/// Every model that can be asked for, at one moment.
pub(crate) struct Table {
    /// The base's id.
    pub(crate) base: String,
    tasks: HashMap<String, TaskRoutes>,
    /// Tasks in the configuration's order, then those of fine-tuning jobs.
    order: Vec<String>,
}

/// One task's models.
pub(crate) struct TaskRoutes {
    pub(crate) task: Arc<Task>,
    pub(crate) stages: Stages,
    pub(crate) adapters: BTreeMap<u32, Arc<AdapterRef>>,
}

/// Who answers a request.
#[derive(Clone)]
pub(crate) struct Route {
    /// The resolved name: `support@3`, `support@base`, or the base's id.
    pub(crate) name: String,
    /// `None` for the bare base.
    pub(crate) task: Option<Arc<Task>>,
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
    /// The champion's name.
    pub(crate) fn champion(&self) -> String {
        self.stages.champion_name(&self.task.name)
    }

    /// Adapters that traffic may reach at any moment: the champion, and the canary.
    pub(crate) fn in_traffic(&self) -> impl Iterator<Item = &Arc<AdapterRef>> {
        self.stages
            .in_traffic()
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
            stage: self.stages.stage(number).to_string(),
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
    /// `state`: each task's stages and adapters, in order.
    pub(crate) fn new(base: &str, state: Vec<(Arc<Task>, Stages, Vec<AdapterRef>)>) -> Self {
        let order = state.iter().map(|(task, ..)| task.name.clone()).collect();
        let routes = |(task, stages, adapters): (Arc<Task>, Stages, Vec<AdapterRef>)| {
            let adapters = adapters.into_iter();
            let adapters = adapters.map(|a| (a.number, Arc::new(a))).collect();
            let name = task.name.clone();
            let routes = TaskRoutes {
                task,
                stages,
                adapters,
            };
            (name, routes)
        };
        Self {
            base: base.to_owned(),
            tasks: state.into_iter().map(routes).collect(),
            order,
        }
    }

    /// A task by its name.
    pub(crate) fn task(&self, name: &str) -> Option<&TaskRoutes> {
        self.tasks.get(name)
    }

    /// Tasks in order.
    pub(crate) fn tasks(&self) -> impl Iterator<Item = &TaskRoutes> {
        self.order.iter().filter_map(|name| self.tasks.get(name))
    }

    /// Leaves the task's stages as they were in `before`: its newest ones cannot be served.
    pub(crate) fn keep(&mut self, task: &str, before: &Table) {
        let old = before.tasks.get(task).map(|t| t.stages.clone());
        if let Some(routes) = self.tasks.get_mut(task) {
            routes.stages = old.unwrap_or_default();
        }
    }

    /// Who is asked beside whoever answers a request to the task's bare name, unseen: the shadow, for its own share of the keys.
    pub(crate) fn shadow_of(&self, task: &str, sticky_key: &str) -> Option<Route> {
        let routes = self.tasks.get(task)?;
        let (number, share) = routes.stages.shadow?;
        // Other keys than the canary's: no task's name has a slash.
        (fraction(&format!("{task}/shadow"), sticky_key) < share)
            .then(|| routes.adapter(number))
            .flatten()
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
    ModelName::of(task, Some(number)).to_string()
}

pub(crate) fn baseline_name(task: &str) -> String {
    ModelName::of(task, None).to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::path::PathBuf;

    use retune_ledger::{Action, Manifest};
    use retune_task::Config;

    use super::*;

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

    #[test]
    fn canary_and_shadow_have_their_own_shares_of_the_keys() {
        let config = Config::load(None, []).unwrap();
        let task = Arc::clone(&config.tasks[0]);
        let adapter = |number| AdapterRef {
            task: "triage".to_owned(),
            number,
            folder: PathBuf::new(),
            manifest: Manifest::default(),
        };
        let after = |stages: Stages, number, action| {
            stages.after("triage", Some(number), action, &[]).unwrap()
        };
        let stages = after(Stages::default(), 1, Action::Promote);
        let stages = after(stages, 2, Action::Canary(0.5));
        let stages = after(stages, 3, Action::Shadow(0.5));
        let adapters = (1..4).map(adapter).collect();
        let table = Table::new("pocket", vec![(task, stages, adapters)]);
        let mut seen = [[0; 2]; 2];
        for i in 0..400 {
            let key = format!("user-{i}");
            let answers = table.resolve("triage", &key).unwrap();
            assert!(["triage@1", "triage@2"].contains(&answers.name.as_str()));
            let shadow = table.shadow_of("triage", &key);
            assert!(shadow.as_ref().is_none_or(|s| s.name == "triage@3"));
            seen[usize::from(answers.stage == "canary")][usize::from(shadow.is_some())] += 1;
        }
        assert!(
            seen.iter().flatten().all(|n| (60..140).contains(n)),
            "{seen:?}"
        );
        assert!(table.shadow_of("other", "user-1").is_none());
    }
}
