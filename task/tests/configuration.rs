//! Configurations as people write them, right and wrong.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use retune_task::{AlarmKind, Config, EngineKind, Promote};

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
        .collect()
}

fn load(text: &str, pairs: &[(&str, &str)]) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("retune.toml");
    std::fs::write(&path, text).unwrap();
    std::fs::write(folder.path().join("p.txt"), "\u{feff}Do it.\n").unwrap();
    std::fs::write(folder.path().join("bad.json"), "{\n\"type\": }").unwrap();
    let place = format!("{}/", folder.path().display());
    Config::load(Some(&path), env(pairs)).map_err(|e| e.to_string().replace(&place, ""))
}

const TASK: &str = "[[task]]\nname = \"support\"\nprompt = \"p.txt\"\n";

#[test]
fn the_built_in_configuration_is_right() {
    let config = Config::load(
        None,
        env(&[
            ("RETUNE_STORE__URL", "file:/tmp/x"),
            ("RETUNE_LOG", "debug"),
        ]),
    )
    .unwrap();
    assert_eq!(config.tasks[0].name, "triage");
    assert_eq!(config.tasks[0].retrain.promote, Promote::Auto);
    assert_eq!(config.tasks[0].retrain.min_new_examples, 150);
    assert_eq!(config.store.url, "file:/tmp/x");
    assert!(config.tasks[0].format.is_some());
}

#[test]
fn three_mistakes_are_named_at_once_with_their_lines() {
    let error = load(
        "[server]\nlisten = \"0.0.0.0\"\n[engine]\nmax_loadet = 2\n[[task]]\nname = \"support\"\nprompt = \"none.txt\"\n",
        &[],
    )
    .unwrap_err();
    assert!(error.starts_with("3 problems"), "{error}");
    assert!(
        error.contains(
            "retune.toml:2: server.listen: is \"0.0.0.0\"; expected an address such as \"127.0.0.1:8080\""
        ),
        "{error}"
    );
    assert!(
        error.contains(
            "retune.toml:4: engine.max_loadet: there is no such key; did you mean max_loaded?"
        ),
        "{error}"
    );
    assert!(
        error.contains("retune.toml:7: task.support.prompt: none.txt: No such file"),
        "{error}"
    );
}

#[test]
fn what_this_version_cannot_do_is_refused_rather_than_ignored() {
    let error = load(
        &format!("[engine]\nkind = \"remote\"\n[store]\nurl = \"http://b/p\"\n{TASK}enforce = \"retry\"\n[task.retrain]\ntrainer = \"openai\"\n"),
        &[],
    )
    .unwrap_err();
    assert!(error.starts_with("5 problems"), "{error}");
    for part in [
        "retune.toml:2: engine.kind",
        "retune.toml:4: store.url",
        "retune.toml:8: task.support.enforce",
        "task.support.retrain.trainer_url: is missing",
        "task.support.retrain.trainer_model: is missing",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[test]
fn what_is_withheld_is_named_word_by_word() {
    let privacy = "[task.privacy]\nredact = [\"email\", \"fone\", 3]\npatterns = [\"[0-9]+\", \"(\"]\nprompts = \"no\"\ntext_share = 2\n";
    let error = load(&format!("{TASK}{privacy}"), &[]).unwrap_err();
    for part in [
        "task.support.privacy.redact: \"fone\" is no kind of personal data; did you mean \"phone\"?",
        "task.support.privacy.redact: 3 is no kind of personal data; expected one of secret, email, iban, card, ip, phone",
        "task.support.privacy.patterns: \"(\" is no regular expression",
        "task.support.privacy.prompts: is \"no\"; expected \"keep\" or \"hash\" or \"drop\"",
        "task.support.privacy.text_share: is 2; expected a number from 0 to 1",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
    let store = "[store]\nurl = \"s3://bucket/prefix\"\nlocal = \"here\"\n[query]\nmemory_bytes = 300000000\n";
    let config = load(&format!("{store}{TASK}"), &[]).unwrap();
    assert_eq!(config.store.url, "s3://bucket/prefix");
    assert!(
        config.store.local.ends_with("/here"),
        "{}",
        config.store.local
    );
    assert_eq!(config.store.query_memory_bytes, 300_000_000);
    assert!(config.tasks[0].privacy.redaction.is_empty());
}

#[test]
fn the_environment_goes_over_the_file_and_is_named_where_it_is_wrong() {
    let config = load(
        TASK,
        &[
            ("RETUNE_TASK__SUPPORT__RETRAIN__MIN_EXAMPLES", "300"),
            ("RETUNE_ENGINE__MAX_LOADED", "2"),
            ("RETUNE_TASK__SUPPORT__ADAPTER_PROMPT", "Go."),
        ],
    )
    .unwrap();
    assert_eq!(config.tasks[0].retrain.min_examples, 300);
    assert_eq!(config.engine.max_loaded, 2);
    assert_eq!(config.tasks[0].adapter_prompt, "Go.");
    assert_eq!(config.tasks[0].prompt, "Do it.");

    let error = load(
        TASK,
        &[
            ("RETUNE_ENGINE__MAX_LOADED", "many"),
            ("RETUNE_SERVER__PORT", "1"),
            ("RETUNE_TASK__SALES__ENFORCE", "off"),
        ],
    )
    .unwrap_err();
    assert!(error.starts_with("3 problems"), "{error}");
    assert!(
        error.contains(
            "RETUNE_ENGINE__MAX_LOADED: engine.max_loaded: is \"many\"; expected a whole number"
        ),
        "{error}"
    );
    assert!(
        error.contains("RETUNE_SERVER__PORT: server.port: there is no such key"),
        "{error}"
    );
    assert!(
        error.contains(
            "RETUNE_TASK__SALES__ENFORCE: task.sales.enforce: there is no task \"sales\""
        ),
        "{error}"
    );
}

#[test]
fn the_server_s_limits_and_files() {
    let config = load(TASK, &[]).unwrap().server;
    assert_eq!(
        (
            config.max_messages,
            config.client_timeout.as_secs(),
            config.grace.as_secs(),
            config.tls
        ),
        (2048, 10, 30, None)
    );
    // Whether others may reach it depends on the keys, which are in the store.
    let text = format!(
        "[server]\nlisten = \"0.0.0.0:8443\"\ntls_cert = \"tls/cert.pem\"\ntls_key = \"/etc/key.pem\"\n{TASK}"
    );
    let config = load(&text, &[]).unwrap().server;
    assert!(config.listen.ip().is_unspecified());
    let tls = config.tls.unwrap();
    assert!(tls.cert.is_absolute() && tls.cert.ends_with("tls/cert.pem"));
    assert_eq!(tls.key, Path::new("/etc/key.pem"));
}

#[test]
fn formats_schedules_and_names_are_checked() {
    let error = load(
        "[[task]]\nname = \"Su pport\"\nprompt = \"p.txt\"\nformat = { regex = \"(\" }\n[task.retrain]\nschedule = \"0 25 * * *\"\non = [\"fromat\"]\n",
        &[],
    )
    .unwrap_err();
    assert!(error.starts_with("4 problems"), "{error}");
    for line in [2, 4, 6, 7] {
        assert!(
            error.contains(&format!("retune.toml:{line}:")),
            "{line} in {error}"
        );
    }
    let error = load("[server\n", &[]).unwrap_err();
    assert!(
        error.contains("retune.toml:1: the file: not TOML"),
        "{error}"
    );
    assert!(
        Config::load(Some(Path::new("/none/retune.toml")), env(&[]))
            .unwrap_err()
            .to_string()
            .contains("/none/retune.toml")
    );
}

#[test]
fn each_mistake_is_said_with_its_place_its_value_and_what_was_expected() {
    for (text, env, expected) in [
        // A text key is known before it is set.
        (
            "[server]\nlisen = \"127.0.0.1:1\"\nTASK",
            "",
            "retune.toml:2: server.lisen: there is no such key; did you mean listen?",
        ),
        (
            "[server]\nops_listen = \"127.0.0.1:8080\"\nTASK",
            "",
            "retune.toml:2: server.ops_listen: is \"127.0.0.1:8080\", as server.listen is; expected another port, or nothing: then both are on `listen`",
        ),
        (
            "[server]\ntls_cert = \"cert.pem\"\nTASK",
            "",
            "retune.toml:2: server.tls_key: is missing or wrong; expected a file in PEM form: tls_cert and tls_key go together",
        ),
        (
            "[server]\nclient_timeout_seconds = 0\nTASK",
            "",
            "retune.toml:2: server.client_timeout_seconds: is 0; expected a number above 0 and at most 3600",
        ),
        (
            "[engine]\nmax_loaded = 99999999999999999999\nTASK",
            "",
            "retune.toml:2: engine.max_loaded: is 99999999999999999999; expected a whole number from 1 to 1000",
        ),
        (
            "[engine]\nmax_loaded = 2026-01-01\nTASK",
            "",
            "retune.toml:2: engine.max_loaded: is 2026-01-01; expected a whole number from 1 to 1000",
        ),
        (
            "[engine]\nmax_loaded = 1\nmax_loaded = 2\nTASK",
            "",
            "retune.toml:3: the file: not TOML: duplicate key",
        ),
        (
            "[engine]\napi_key_env = \"KEY\"\nTASK",
            "",
            "retune.toml:2: engine.api_key_env: belongs to kind = \"upstream\"; set that, or leave this out",
        ),
        (
            "[engine]\nkind = \"upstream\"\nTASK",
            "",
            "retune.toml:1: engine.url: is missing; expected a server's address",
        ),
        (
            "[engine]\nkind = \"upstream\"\nurl = \"vllm:8000\"\nTASK",
            "",
            "retune.toml:3: engine.url: is \"vllm:8000\"; expected a server's address",
        ),
        (
            "[engine]\nkind = \"upstream\"\nurl = \"http://a\"\n[[engine.upstream]]\nurl = \"http://b\"\nTASK",
            "",
            "retune.toml:3: engine.url: stands beside [[engine.upstream]]",
        ),
        (
            "[engine]\nkind = \"upstream\"\n[[engine.upstream]]\nurl = \"http://b\"\nwieght = 2\nTASK",
            "",
            "retune.toml:5: engine.upstream[0].wieght: there is no such key; did you mean weight?",
        ),
        (
            "[engine]\nkind = \"upstream\"\nurl = \"http://a\"\nadapters_path = \"adapters\"\nTASK",
            "",
            "retune.toml:4: engine.adapters_path: is \"adapters\"; expected the whole path",
        ),
        (
            "[store]\nurl = \"gs:bucket\"\nTASK",
            "",
            "retune.toml:2: store.url: is \"gs:bucket\": expected file: and a folder, or a bucket: s3://bucket/prefix, gs://bucket/prefix, az://bucket/prefix, abfss://bucket/prefix",
        ),
        (
            "[store]\nurl = \"file:\"\nTASK",
            "",
            "retune.toml:2: store.url: is \"file:\", which names no folder; expected one, such as \"file:./retune-data\"",
        ),
        (
            "[monitor]\npoll_seconds = nan\nTASK",
            "",
            "retune.toml:2: monitor.poll_seconds: is NaN; expected a number above 0 and at most 3600",
        ),
        (
            "TASK[task.retrain.lora]\ndropout = -0.1\n",
            "",
            "retune.toml:5: task.support.retrain.lora.dropout: is -0.1; expected a number from 0 to 0.9",
        ),
        (
            "TASK[task.retrain.lora]\ntarget_modules = [\"q_prj\"]\n",
            "",
            "retune.toml:5: task.support.retrain.lora.target_modules: \"q_prj\" is no linear map; did you mean \"q_proj\"?",
        ),
        (
            "TASK[task.retrain.lora]\nrecompute = 1\n",
            "",
            "retune.toml:5: task.support.retrain.lora.recompute: is 1; expected true or false",
        ),
        (
            "TASK[task.retrain.lora]\ndecay = \"cosin\"\n",
            "",
            "retune.toml:5: task.support.retrain.lora.decay: is \"cosin\"; expected \"cosine\" or \"linear\" or \"constant\"",
        ),
        (
            "TASK[task.retrain]\non = [\"format\",\n  \"fromat\"]\n",
            "",
            "retune.toml:6: task.support.retrain.on: \"fromat\" is no kind of alarm; did you mean \"format\"?",
        ),
        (
            "TASK[task.retrain]\nschedule = \"0 5-1 * * *\"\n",
            "",
            "retune.toml:5: task.support.retrain.schedule: is \"0 5-1 * * *\"; expected five cron fields, such as \"0 3 1 */3 *\"",
        ),
        (
            "TASKformat = { json_schema = \"bad.json\" }\n",
            "",
            "retune.toml:4: task.support.format: bad.json: not JSON: expected value at line 2 column 9",
        ),
        (
            "TASKformat = { jsonschema = \"a.json\" }\n",
            "",
            "retune.toml:4: task.support.format.jsonschema: there is no such key; did you mean json_schema?",
        ),
        (
            "TASKformat = { regex = \"a\", length = [1, 2] }\n",
            "",
            "retune.toml:4: task.support.format: is a table with {length, regex}; expected one of",
        ),
        (
            "TASK[[task]]\nname = \"support\"\nprompt = \"p.txt\"\n",
            "",
            "retune.toml:5: task.support.name: is \"support\", as an earlier task's is; expected another name",
        ),
        (
            "[[task]]\nprompt = \"p.txt\"\nname = \"pocket\"\n",
            "",
            "retune.toml:3: task.pocket.name: is \"pocket\", as the base's own id is; expected another name",
        ),
        (
            "[[task]]\nname = \"a_b\"\nprompt = \"p.txt\"\n",
            "",
            "retune.toml:2: task.a_b.name: is \"a_b\"; expected lower-case letters and digits",
        ),
        (
            "[engine]\n",
            "",
            "retune.toml:1: task: there is none; expected at least one [[task]]",
        ),
        (
            "[cost]\ntraining_hour = -1\nTASK",
            "",
            "retune.toml:2: cost.training_hour: is -1; expected a number from 0 to 1000000000",
        ),
        (
            "TASK[task.retrain]\nmin_pairs = 200\nmax_pairs = 199\n",
            "",
            "retune.toml:6: task.support.retrain.max_pairs: is 199; expected a whole number from 200 to 100000",
        ),
        (
            "TASK[task.retrain]\nhours = [22, 24]\n",
            "",
            "retune.toml:5: task.support.retrain.hours: is [22, 24]; expected two different hours of the day in UTC, such as [22, 6]",
        ),
        (
            "TASK[task.retrain]\nhours = [3, 3]\n",
            "",
            "retune.toml:5: task.support.retrain.hours: is [3, 3]; expected two different hours",
        ),
        (
            "TASK[task.retrain]\nbudget = 0\n",
            "",
            "retune.toml:5: task.support.retrain.budget: is 0; expected a number above 0",
        ),
        (
            "TASK[task.retrain.canary]\nshare = 0\n",
            "",
            "retune.toml:5: task.support.retrain.canary.share: is 0; expected a number above 0 and below 1",
        ),
        (
            "TASK",
            "RETUNE_TASK__SUPPORT__NAME=sales",
            "RETUNE_TASK__SUPPORT__NAME: task.support.name: a task is made and named in the file",
        ),
        (
            "TASK",
            "RETUNE_TASK__SUPPORT=1",
            "RETUNE_TASK__SUPPORT: task.support: a task is made and named in the file",
        ),
        (
            "TASK",
            "RETUNE_STORES__URL=file:x",
            "RETUNE_STORES__URL: stores: there is no such key; did you mean store?",
        ),
    ] {
        let set: Vec<(&str, &str)> = env.split_once('=').into_iter().collect();
        let error = load(&text.replace("TASK", TASK), &set).unwrap_err();
        let shown = format!("1 problem in the configuration\n  {expected}");
        assert!(
            error.starts_with(&shown),
            "{text}\n{error}\nexpected {shown}"
        );
    }
}

#[test]
fn problems_come_in_the_files_order_and_a_broken_line_hides_no_other() {
    let error = load(
        &format!("{TASK}[server]\nlisten = 1\n[engine]\nmax_loaded =\nmax_loadet = 3\n"),
        &[("RETUNE_MONITOR__X", "1")],
    )
    .unwrap_err();
    let places: Vec<&str> = error
        .lines()
        .skip(1)
        .filter_map(|line| line.trim().split(": ").next())
        .collect();
    let expected = [
        "retune.toml:5",
        "retune.toml:7",
        "retune.toml:8",
        "RETUNE_MONITOR__X",
    ];
    assert_eq!(places, expected, "{error}");
}

#[test]
fn a_variable_is_read_as_its_key_needs_it() {
    let config = load(
        &TASK.replace("support", "first-line"),
        &[
            ("RETUNE_TASK__FIRST_LINE__ADAPTER_PROMPT", "42"),
            ("RETUNE_TASK__FIRST_LINE__FORMAT__REGEX", "yes|no"),
            ("RETUNE_TASK__FIRST_LINE__RETRAIN__ON", "[\"input\"]"),
            ("RETUNE_MONITOR__EXCHANGES_PER_QUARTER", "2_000_000"),
            ("RETUNE_SERVER__LISTEN", "\"127.0.0.1:0\""),
        ],
    )
    .unwrap();
    let task = &config.tasks[0];
    assert_eq!(task.adapter_prompt, "42");
    assert!(task.format.as_ref().unwrap().check("no").is_valid());
    assert_eq!(task.retrain.on, [AlarmKind::Input]);
    assert_eq!(config.monitor.exchanges_per_quarter, 2_000_000);
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:0");
}

#[test]
fn upstreams_have_addresses_weights_and_variables_for_their_keys() {
    let config = load(
        &format!("[engine]\nkind = \"upstream\"\nmodel = \"llama-3\"\n[[engine.upstream]]\nurl = \"http://a:8000/v1\"\nweight = 3\n[[engine.upstream]]\nurl = \"https://b\"\napi_key_env = \"B_KEY\"\n{TASK}"),
        &[("RETUNE_ENGINE__IDLE_TIMEOUT_SECONDS", "2.5")],
    )
    .unwrap();
    let EngineKind::Upstream(upstream) = &config.engine.kind else {
        unreachable!("it is upstream");
    };
    let servers: Vec<_> = upstream
        .servers
        .iter()
        .map(|s| (s.url.as_str(), s.api_key_env.as_deref(), s.weight))
        .collect();
    assert_eq!(
        servers,
        [("http://a:8000", None, 3), ("https://b", Some("B_KEY"), 1)]
    );
    assert_eq!(config.engine.base, "llama-3");
    assert_eq!(upstream.idle_timeout_seconds, 2.5);
    assert_eq!(upstream.connect_timeout_seconds, 5.0);
}

#[test]
fn a_key_that_was_written_instead_of_its_variable_is_not_shown() {
    let error = load(
        &format!("[engine]\nkind = \"upstream\"\nurl = \"http://a\"\napi_key_env = \"sk-very-secret\"\n{TASK}"),
        &[],
    )
    .unwrap_err();
    assert!(
        error.contains("retune.toml:4: engine.api_key_env: is no such name"),
        "{error}"
    );
    assert!(!error.contains("secret"), "{error}");
}
