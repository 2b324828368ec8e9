//! Sessions against a server that is written out: each test plays the server's part in bytes.

use super::*;
use crate::value::tests::any_json;
use proptest::prelude::*;
use uuid::Uuid;

const ROW: &str = "00000000-0000-0000-0000-000000000001";

fn session() -> Session {
    Session::new(Config::new("db", Watch::new().table("T", &["name"])))
}

/// What the session wrote, as messages.
fn sent(session: &mut Session) -> Vec<Message> {
    let mut framer = Framer::new(MESSAGE_BYTES_MAX);
    framer.push(&session.take_output());
    std::iter::from_fn(|| framer.pop().unwrap()).map(|text| Message::decode(&text).unwrap()).collect()
}

fn request(session: &mut Session) -> (Json, String, Vec<Json>) {
    let mut messages = sent(session);
    match (messages.pop(), messages.is_empty()) {
        (Some(Message::Request { id, method, params }), true) => (id, method, params),
        other => panic!("not one request: {other:?}"),
    }
}

fn give(session: &mut Session, now: Instant, json: &Json) -> Result<(), SessionError> {
    session.received(json.to_string().as_bytes(), now)
}

fn schema() -> Json {
    json!({"name": "db", "version": "1.0.0", "tables": {"T": {"columns": {"name": {"type": "string"}}}}})
}

/// Brings a session up to its first contents, one row called `first`.
fn up(session: &mut Session, now: Instant) {
    session.connected(now);
    let (id, method, _) = request(session);
    assert_eq!(method, "get_schema");
    give(session, now, &json!({"id": id, "result": schema(), "error": null})).unwrap();
    let (id, method, params) = request(session);
    assert_eq!(method, "monitor_cond_since");
    assert_eq!(params[2], json!({"T": [{"columns": ["name"]}]}));
    let contents = json!([false, "t1", {"T": {ROW: {"initial": {"name": "first"}}}}]);
    give(session, now, &json!({"id": id, "result": contents, "error": null})).unwrap();
    assert!(session.is_synchronised());
}

#[test]
fn a_session_comes_up_follows_and_comes_back() {
    let now = Instant::now();
    let mut session = session();
    up(&mut session, now);
    assert!(matches!(session.next_event(), Some(Event::Synchronised { changes }) if changes.len() == 1));

    let update = json!(["replica", "t2", {"T": {ROW: {"modify": {"name": "second"}}}}]);
    give(&mut session, now, &json!({"id": null, "method": "update3", "params": update})).unwrap();
    assert!(matches!(session.next_event(), Some(Event::Changed { changes }) if changes.len() == 1));

    // The next connection asks for what came after t2, and gets just that.
    session.connected(now);
    let (id, ..) = request(&mut session);
    give(&mut session, now, &json!({"id": id, "result": schema(), "error": null})).unwrap();
    let (id, _, params) = request(&mut session);
    assert_eq!(params[3], "t2");
    let since = json!([true, "t3", {"T": {ROW: {"modify": {"name": "third"}}}}]);
    give(&mut session, now, &json!({"id": id, "result": since, "error": null})).unwrap();
    assert!(matches!(session.next_event(), Some(Event::Synchronised { changes }) if changes.len() == 1));
    assert_eq!(session.replica().row("T", Uuid::from_u128(1)).unwrap().get("name").unwrap(), &"third".into());
}

#[test]
fn older_servers_are_asked_the_older_way() {
    let now = Instant::now();
    let mut session = session();
    session.connected(now);
    let (id, ..) = request(&mut session);
    give(&mut session, now, &json!({"id": id, "result": schema(), "error": null})).unwrap();
    for method in ["monitor_cond_since", "monitor_cond"] {
        let (id, sent, _) = request(&mut session);
        assert_eq!(sent, method);
        give(&mut session, now, &json!({"id": id, "result": null, "error": "unknown method"})).unwrap();
    }
    let (id, method, params) = request(&mut session);
    assert_eq!((method.as_str(), params.len()), ("monitor", 3));
    give(&mut session, now, &json!({"id": id, "result": {"T": {ROW: {"new": {"name": "a"}}}}, "error": null})).unwrap();
    assert!(session.is_synchronised());
    let update = json!(["replica", {"T": {ROW: {"old": {"name": "a"}, "new": {"name": "b"}}}}]);
    give(&mut session, now, &json!({"id": null, "method": "update", "params": update})).unwrap();
    assert_eq!(session.replica().row("T", Uuid::from_u128(1)).unwrap().get("name").unwrap(), &"b".into());
    let gone = json!(["replica", {"T": {ROW: {"old": {"name": "b"}}}}]);
    give(&mut session, now, &json!({"id": null, "method": "update", "params": gone})).unwrap();
    assert_eq!(session.replica().rows("T").count(), 0);
}

#[test]
fn a_silent_server_is_probed_and_given_up() {
    let now = Instant::now();
    let mut session = session();
    assert_eq!(session.deadline(), None);
    up(&mut session, now);
    let first = session.deadline().unwrap();
    session.tick(first - Duration::from_millis(1)).unwrap();
    assert!(sent(&mut session).is_empty());
    session.tick(first).unwrap();
    let (id, method, _) = request(&mut session);
    assert_eq!(method, "echo");
    // An answer starts the count again; none ends the connection.
    give(&mut session, first, &json!({"id": id, "result": [], "error": null})).unwrap();
    let second = session.deadline().unwrap();
    assert!(second > first);
    session.tick(second).unwrap();
    assert!(matches!(session.tick(session.deadline().unwrap()), Err(SessionError::Silent(_))));
}

#[test]
fn echo_is_answered_and_other_requests_are_refused() {
    let now = Instant::now();
    let mut session = session();
    up(&mut session, now);
    give(&mut session, now, &json!({"id": "echo", "method": "echo", "params": ["x"]})).unwrap();
    give(&mut session, now, &json!({"id": 9, "method": "convert", "params": []})).unwrap();
    let replies = sent(&mut session);
    assert_eq!(replies[0], Message::Reply { id: json!("echo"), outcome: Ok(json!(["x"])) });
    assert!(matches!(&replies[1], Message::Reply { outcome: Err(_), .. }));
}

#[test]
fn transactions_end_once_also_without_a_reply() {
    let now = Instant::now();
    let mut session = session();
    let mut transaction = Transaction::new();
    transaction.comment("why");
    assert_eq!(session.transact(&transaction), Err(TransactionError::NotConnected));
    up(&mut session, now);
    session.next_event();
    let done = session.transact(&transaction).unwrap();
    let (id, method, params) = request(&mut session);
    assert_eq!((method.as_str(), params.len()), ("transact", 2));
    give(&mut session, now, &json!({"id": id, "result": [{}], "error": null})).unwrap();
    assert!(matches!(session.next_event(), Some(Event::Transacted { id, outcome: Ok(_) }) if id == done));
    let lost = session.transact(&transaction).unwrap();
    session.disconnected();
    let expected = Event::Transacted { id: lost, outcome: Err(TransactionError::Disconnected) };
    assert_eq!(session.next_event(), Some(expected));
    assert_eq!(session.next_event(), None);
}

#[test]
fn transactions_under_way_are_bounded() {
    let now = Instant::now();
    let mut session = session();
    up(&mut session, now);
    for _ in 0..TRANSACTIONS_MAX {
        session.transact(&Transaction::new()).unwrap();
    }
    assert_eq!(session.transact(&Transaction::new()), Err(TransactionError::Busy));
}

#[test]
fn locks_come_go_and_are_asked_for_again() {
    let now = Instant::now();
    let name = Name::new("basalt").unwrap();
    let mut session = session();
    up(&mut session, now);
    session.next_event();
    session.lock(name.clone());
    let (id, method, _) = request(&mut session);
    assert_eq!(method, "lock");
    give(&mut session, now, &json!({"id": id, "result": {"locked": false}, "error": null})).unwrap();
    assert_eq!(session.next_event(), None);
    give(&mut session, now, &json!({"id": null, "method": "locked", "params": ["basalt"]})).unwrap();
    assert_eq!(session.next_event(), Some(Event::Lock { name: name.clone(), held: true }));
    give(&mut session, now, &json!({"id": null, "method": "stolen", "params": ["basalt"]})).unwrap();
    assert_eq!(session.next_event(), Some(Event::Lock { name: name.clone(), held: false }));
    session.connected(now);
    assert!(sent(&mut session).iter().any(|message| matches!(message,
        Message::Request { method, .. } if method == "lock")));
    session.unlock(&name);
    assert_eq!(request(&mut session).1, "unlock");
}

/// After an update that does not fit, the next connection asks for everything.
#[test]
fn a_wrong_update_ends_the_connection_and_starts_over() {
    let now = Instant::now();
    let mut session = session();
    up(&mut session, now);
    let update = json!(["replica", "t2", {"T": {Uuid::from_u128(5).to_string(): {"modify": {"name": "x"}}}}]);
    let error = give(&mut session, now, &json!({"id": null, "method": "update3", "params": update})).unwrap_err();
    assert!(matches!(error, SessionError::Replica { .. }), "{error}");
    session.connected(now);
    let (id, ..) = request(&mut session);
    give(&mut session, now, &json!({"id": id, "result": schema(), "error": null})).unwrap();
    assert_eq!(request(&mut session).2[3], NO_TRANSACTION);
}

#[test]
fn a_database_or_table_that_is_not_there_is_named() {
    let now = Instant::now();
    let mut session = session();
    session.connected(now);
    let (id, ..) = request(&mut session);
    let error = give(&mut session, now, &json!({"id": id, "result": null, "error": {"error": "unknown database"}}));
    assert!(error.unwrap_err().to_string().contains("refused get_schema for database db"));
    session.connected(now);
    let (id, ..) = request(&mut session);
    let empty = json!({"name": "db", "tables": {}});
    let error = give(&mut session, now, &json!({"id": id, "result": empty, "error": null})).unwrap_err();
    let SessionError::Monitor { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.to_string(), "database db has no table T");
}

proptest! {
    /// Whatever a server answers, the session ends the connection or goes on; it never panics.
    #[test]
    fn any_answers_are_taken_or_refused(
        answers in proptest::collection::vec((any_json(), any::<bool>(), 0_u64..6), 0..12),
        methods in proptest::collection::vec((0_usize..5, any_json(), any_json(), any_json()), 0..6),
    ) {
        let now = Instant::now();
        let mut session = session();
        session.connected(now);
        session.lock(Name::new("l").unwrap());
        for (json, good, id) in answers {
            let (result, error) = if good { (json, Json::Null) } else { (Json::Null, json) };
            let _either = give(&mut session, now, &json!({"id": id, "result": result, "error": error}));
            let _either = session.transact(&Transaction::new());
        }
        let mut session = self::session();
        up(&mut session, now);
        for (method, a, b, c) in methods {
            let method = ["update", "update2", "update3", "locked", "stolen"][method];
            let params = if method == "update3" { json!([a, b, c]) } else { json!([a, b]) };
            let _either = give(&mut session, now, &json!({"id": null, "method": method, "params": params}));
        }
    }

    #[test]
    fn any_bytes_are_taken_or_refused(bytes in any::<Vec<u8>>()) {
        let now = Instant::now();
        let mut session = session();
        session.connected(now);
        let _either = session.received(&bytes, now);
    }
}
