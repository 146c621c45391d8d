//! An engine that panics: its requests fail as they should, and its model answers again, as before.

use super::*;

/// The text so far, and the error that it ended with.
async fn failed(mut generating: Generating) -> (String, Error) {
    let mut text = String::new();
    loop {
        match generating.events.recv().await.expect("an end") {
            Event::Text { text: piece, .. } => text.push_str(&piece),
            Event::Failed(e) => return (text, e),
            Event::Done { .. } => panic!("it was answered"),
        }
    }
}

fn is_restarting(e: &Error) -> bool {
    matches!(e, Error::Restarting { seconds } if *seconds > 0)
}

/// Asks eight times at once, breaks the first answer off after five tokens, and sees what the others get.
async fn broken_in_the_middle(f: &Fixture, adapter: Option<&str>, whole: &str) {
    f.engine.fault.after(5);
    let asked = (0..8).map(|_| async {
        match f.engine.generate(generation(adapter, "Hello")).await {
            Ok(generating) => failed(generating).await,
            Err(e) => (String::new(), e),
        }
    });
    let mut ended = futures::future::join_all(asked).await;
    assert!(ended.iter().all(|(_, e)| is_restarting(e)), "{ended:?}");
    ended.retain(|(text, _)| !text.is_empty());
    let begun: Vec<&str> = ended.iter().map(|(text, _)| text.as_str()).collect();
    assert_eq!(begun, [&whole[..5]], "one was under way, the others waited");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_base_comes_back_by_itself() {
    let f = fixture().await;
    f.load("t@1#a/0", 5).await;
    let (base, ..) = answer(&f.engine, generation(None, "Hello")).await;
    let (adapter, ..) = answer(&f.engine, generation(Some("t@1#a/0"), "Hello")).await;
    for round in 1..3 {
        broken_in_the_middle(&f, None, &base).await;
        restarted(&f.restarts, 2 * round - 1).await;
        // Others go on meanwhile.
        let beside = answer(&f.engine, generation(Some("t@1#a/0"), "Hello")).await;
        assert_eq!(beside.0, adapter);
        back(&f.engine).await;
        assert_eq!(answer(&f.engine, generation(None, "Hello")).await.0, base);

        // In a forward pass, where mistralrs' own restart would never get over it.
        f.engine.poison(None);
        let generating = f.engine.generate(generation(None, "Hello")).await.unwrap();
        let (text, error) = failed(generating).await;
        assert!(
            text.is_empty() && is_restarting(&error),
            "{text:?}, {error}"
        );
        restarted(&f.restarts, 2 * round).await;
        back(&f.engine).await;
        assert_eq!(answer(&f.engine, generation(None, "Hello")).await.0, base);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_is_forgotten_and_can_be_loaded_again() {
    let f = fixture().await;
    let (base, ..) = answer(&f.engine, generation(None, "Hello")).await;
    f.load("t@1#a/0", 5).await;
    let (adapter, ..) = answer(&f.engine, generation(Some("t@1#a/0"), "Hello")).await;
    broken_in_the_middle(&f, Some("t@1#a/0"), &adapter).await;
    assert!(!f.engine.holds_adapter("t@1#a/0"));
    restarted(&f.restarts, 1).await;
    assert!(f.engine.ready().await, "the base answers all the while");
    assert_eq!(answer(&f.engine, generation(None, "Hello")).await.0, base);
    f.load("t@1#a/1", 5).await;
    let again = answer(&f.engine, generation(Some("t@1#a/1"), "Hello")).await;
    assert_eq!(again.0, adapter);

    f.engine.poison(Some("t@1#a/1"));
    let asked = f.engine.generate(generation(Some("t@1#a/1"), "Hello"));
    let (_, error) = failed(asked.await.unwrap()).await;
    assert!(is_restarting(&error), "{error}");
    restarted(&f.restarts, 2).await;
    // Whoever lets go of it finds that it is gone already.
    let gone = f.engine.unload("t@1#a/1").await;
    assert!(matches!(gone, Err(Error::NotLoaded(_))), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_was_wanted_is_no_breakdown() {
    let f = fixture().await;
    f.load("t@1#a/0", 5).await;
    f.engine.unload("t@1#a/0").await.unwrap();
    let restarts = f.restarts.clone();
    drop(f);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(restarts.get(), 0);
}
