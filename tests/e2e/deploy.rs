//! What is shipped in deploy/: its configurations are right, and what its files name is there.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::harness::{ROOT, folder, retune, text};
use crate::tidy::files;

#[test]
fn every_shipped_configuration_passes_the_check() {
    let deploy = Path::new(ROOT).join("deploy");
    let mut checked = 0;
    for config in files("retune.toml") {
        if !config.starts_with(&deploy) {
            continue;
        }
        let empty = folder();
        let output = retune(empty.path())
            // The file's own address and store are looked over, not the tests'.
            .env_remove("RETUNE_SERVER__LISTEN")
            .env_remove("RETUNE_STORE__URL")
            .args(["check", "--json", "--config"])
            .arg(&config)
            .output()
            .unwrap();
        let said = text(&output.stderr);
        assert!(output.status.success(), "{}: {said}", config.display());
        let told: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
        assert_eq!(told["listen"], "0.0.0.0:8080", "{told}");
        assert_eq!(told["tasks"][0], "support", "{told}");
        checked += 1;
    }
    assert_eq!(checked, 2, "compose's and Kubernetes'");
}

/// The path that a line of a compose file builds or mounts, if it is one of this checkout, relative to the file's folder. The file's own form:
/// a line each, with a default where the environment may name another.
fn named_by(line: &str) -> Option<&str> {
    let line = line.trim();
    if let Some(built) = line.strip_prefix("build: ") {
        return Some(built);
    }
    let mounted = line.strip_prefix("- ")?;
    if let Some(variable) = mounted.strip_prefix("${") {
        let (_, default) = variable.split_once(":-")?;
        return Some(default.split_once('}')?.0);
    }
    let (path, _) = mounted.split_once(':')?;
    path.starts_with('.').then_some(path)
}

#[test]
fn what_compose_mounts_is_there() {
    let folder = Path::new(ROOT).join("deploy/compose");
    let compose = fs::read_to_string(folder.join("compose.yaml")).unwrap();
    let named: Vec<&str> = compose.lines().filter_map(named_by).collect();
    for expected in [
        "../..",
        "./config",
        "../../grafana/prometheus/rules",
        "../../grafana/alertmanager/alertmanager.yml",
        "../../grafana/dashboards",
    ] {
        assert!(named.contains(&expected), "{expected} in {named:?}");
    }
    for path in named {
        assert!(folder.join(path).exists(), "{path} is not there");
    }
}

#[test]
fn kubernetes_has_every_file_of_the_configuration_and_every_manifest() {
    let folder = Path::new(ROOT).join("deploy/kubernetes");
    let kustomization = fs::read_to_string(folder.join("kustomization.yaml")).unwrap();
    let listed: Vec<&str> = kustomization
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- "))
        .filter(|item| !item.contains(": "))
        .collect();
    for name in &listed {
        assert!(folder.join(name).is_file(), "{name} is not there");
    }
    for entry in fs::read_dir(folder.join("config")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let name = format!("config/{name}");
        assert!(
            listed.contains(&name.as_str()),
            "{name} is not in the ConfigMap"
        );
    }
}
