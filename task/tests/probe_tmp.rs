#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]
use retune_task::*;
fn load(text: &str, pairs: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("retune.toml");
    std::fs::write(&path, text).unwrap();
    std::fs::write(folder.path().join("p.txt"), "Do it.\n").unwrap();
    std::fs::write(folder.path().join("bad.json"), "{\n \"type\": }").unwrap();
    let e: Vec<_> = pairs
        .iter()
        .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
        .collect();
    match Config::load(Some(&path), e) {
        Ok(c) => format!("OK {:?}", c.tasks[0])
            .chars()
            .take(300)
            .collect::<String>(),
        Err(e) => e
            .to_string()
            .replace(&format!("{}/", folder.path().display()), ""),
    }
}
const T: &str = "[[task]]\nname = \"support\"\nprompt = \"p.txt\"\n";
#[test]
fn probe() {
    let t = |s: &str| format!("{T}{s}");
    for (n, text, env) in [
        (
            "nearest of an absent text key",
            format!("[server]\nlisen = \"127.0.0.1:1\"\n{T}"),
            vec![],
        ),
        ("syntax", format!("[server\nlisten = 1\n{T}"), vec![]),
        (
            "syntax2",
            format!("[engine]\nmax_loaded = \nmax_loadet = 3\n{T}"),
            vec![],
        ),
        (
            "dup",
            format!("[engine]\nmax_loaded = 1\nmax_loaded = 2\n{T}"),
            vec![],
        ),
        ("dropout", t("[task.retrain.lora]\ndropout = 2\n"), vec![]),
        ("on", t("[task.retrain]\non = [\"fromat\"]\n"), vec![]),
        (
            "big",
            format!("[engine]\nmax_loaded = 99999999999999999999\n{T}"),
            vec![],
        ),
        (
            "env text",
            T.to_owned(),
            vec![
                ("RETUNE_TASK__SUPPORT__ADAPTER_PROMPT", "42"),
                ("RETUNE_ENGINE__BASE", "true"),
            ],
        ),
        ("basename", T.replace("support", "pocket"), vec![]),
        (
            "two unnamed",
            "[[task]]\nprompt=\"p.txt\"\n[[task]]\nprompt=\"p.txt\"\n".into(),
            vec![],
        ),
        (
            "badjson",
            t("format = { json_schema = \"bad.json\" }\n"),
            vec![],
        ),
        (
            "fmt2",
            t("format = { regex = \"a\", length = [1,2] }\n"),
            vec![],
        ),
        ("fmt0", t("format = \"json\"\n"), vec![]),
        ("fmtlen", t("format = { length = [5, 2] }\n"), vec![]),
        (
            "cron",
            t("[task.retrain]\nschedule = \"5-1 0 * * *\"\n"),
            vec![],
        ),
        (
            "ops",
            format!("[server]\nlisten = \"127.0.0.1:8080\"\nops_listen = \"127.0.0.1:8080\"\n{T}"),
            vec![],
        ),
        (
            "upstream",
            format!("[engine]\nkind = \"upstream\"\nurl = \"http://x\"\napi_key_env = \"K\"\n{T}"),
            vec![],
        ),
        ("s3:", format!("[store]\nurl = \"s3:b\"\n{T}"), vec![]),
        ("file:", format!("[store]\nurl = \"file:\"\n{T}"), vec![]),
        (
            "tol0",
            format!("[monitor]\nformat_tolerance = 0\n{T}"),
            vec![],
        ),
        (
            "order",
            format!("[monitor]\nx = 1\n[server]\ny = 1\n{T}zz=1\n"),
            vec![
                ("RETUNE_A__B", "1"),
                ("RETUNE___B", "1"),
                ("RETUNE_TASK__SUPPORT", "1"),
                ("RETUNE_SERVER__", "1"),
                ("RETUNE_TASK__SUPPORT__NAME", "x"),
            ],
        ),
        (
            "mapcase",
            T.to_owned(),
            vec![("RETUNE_TASK__SUPPORT__FORMAT__REGEX", "yes|no")],
        ),
    ] {
        println!("== {n}\n{}", load(&text, &env));
    }
    for p in ["a)|(?:b", "(?x)a # c"] {
        println!(
            "regex {p}: {:?}",
            Format::regex(p).map(|f| f.check("a zzz"))
        );
    }
    for (p, a) in [
        ("{\"a\": {x}}", "zzz}"),
        ("Dear {n},", "Dear  ,"),
        ("{a} {b}", "x\ny z"),
    ] {
        println!(
            "template {p}: {:?}",
            Format::template(p).map(|f| f.check(a))
        );
    }
    for s in [
        r#"{"$schema":"https://json-schema.org/draft/2020-12/schema","format":"date"}"#,
        r#"{"format":"date"}"#,
        r##"{"$ref":"http://127.0.0.1:9/x.json"}"##,
        r##"{"$ref":"file:///etc/hostname"}"##,
    ] {
        println!(
            "schema {s}: {:?}",
            Format::json_schema(s).map(|f| f.check("\"x\""))
        );
    }
    let f = Format::json_schema(r#"{"pattern":"^(?=(a+)+$)(a+)+$"}"#).unwrap();
    let t0 = std::time::Instant::now();
    println!(
        "redos {:?} {:?}",
        f.check(&format!("\"{}b\"", "a".repeat(40))),
        t0.elapsed()
    );
}
#[test]
#[ignore]
fn cyclic() {
    println!(
        "{:?}",
        Format::json_schema(r##"{"$ref":"#"}"##).map(|f| f.check("1"))
    );
}
#[test]
fn templates() {
    for (n, s) in [
        (
            "generation",
            "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        ),
        (
            "reverse",
            "{% for m in messages[::-1] %}{{ m.content }}{% endfor %}",
        ),
        (
            "range",
            "{% for i in range(messages|length - 1, -1, -1) %}{{ i }}{% endfor %}",
        ),
        ("break", "{% for m in messages %}{% break %}{% endfor %}"),
        (
            "tools",
            "{% if tools is not none %}TOOLS{% endif %}{% if tools is defined %}D{% endif %}",
        ),
        (
            "tojson",
            "{{ messages[0]|tojson }} {{ '<a>'|tojson }} {{ messages[0]|tojson(indent=4) }}",
        ),
        (
            "ns",
            "{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }} {{ messages[0].get('tool_calls') }} {{ messages[0].tool_calls is defined }} {{ messages[0].content.split('i')[-1].lstrip('\\n') }}{{ messages[0]['content'] | trim }}{{ 'a' in messages[0] }}",
        ),
        (
            "items",
            "{% for k, v in messages[0].items() %}{{k}}={{v}};{% endfor %}",
        ),
    ] {
        let d = tempfile::tempdir().unwrap();
        std::fs::write(
            d.path().join("tokenizer_config.json"),
            serde_json::json!({"chat_template": s, "eos_token":"e"}).to_string(),
        )
        .unwrap();
        println!(
            "{n}: {:?}",
            ChatTemplate::from_folder(d.path())
                .and_then(|t| t.render(
                    &[
                        ChatMessage::new("user", "hi"),
                        ChatMessage::new("assistant", "yo")
                    ],
                    true
                ))
                .map_err(|e| e.to_string().replace(&d.path().display().to_string(), ""))
        );
    }
}
