//! Asking other resolvers, with real sockets: honest ones, silent ones and ones that lie; and what happens when a port asks too much.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, UdpSocket as Blocking};
use std::thread;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::*;
use crate::dns::question::STREAM;
use crate::dns::share::{ALL_MAX, PORT_MAX};

fn question(id: u16) -> Question {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii("example.org.").unwrap(), RecordType::A));
    Question::parse(&message.to_vec().unwrap(), 1400).unwrap()
}

fn good(asked: &Message) -> Message {
    let mut answer = Message::response(asked.metadata.id, OpCode::Query);
    answer.add_queries(asked.queries.clone());
    let address = RData::A(A(Ipv4Addr::new(192, 0, 2, 80)));
    answer.add_answer(Record::from_rdata(asked.queries[0].name().clone(), 60, address));
    answer
}

/// A resolver that says these messages to each question, until the test ends.
fn upstream(say: impl Fn(&Message) -> Vec<Message> + Send + 'static) -> SocketAddr {
    let socket = Blocking::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut octets = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut octets) {
            for message in say(&Message::from_vec(&octets[..length]).unwrap()) {
                socket.send_to(&message.to_vec().unwrap(), from).unwrap();
            }
        }
    });
    address
}

fn resolver(servers: Vec<SocketAddr>) -> Resolver<u16> {
    let upstreams = Upstreams::default();
    upstreams.set(servers);
    Resolver::new(upstreams, Tally::default())
}

fn code(ready: &Ready<u16>) -> ResponseCode {
    let message = Message::from_vec(&ready.octets).unwrap();
    assert_eq!(message.metadata.id, ready.caller, "each is answered with its own id");
    message.metadata.response_code
}

/// Lies before the truth, and from somebody else: only what answers the question counts.
#[tokio::test]
async fn the_answer_to_the_question_is_believed_and_nothing_else() {
    let server = upstream(|asked| {
        let (mut other_id, mut other_name) = (good(asked), good(asked));
        other_id.metadata.id ^= 1;
        other_name.queries[0].name = Name::from_ascii("example.net.").unwrap();
        vec![other_id, other_name, good(asked)]
    });
    let mut resolver = resolver(vec![server]);
    assert!(resolver.ask(1, 77, question(77)).is_none());
    let ready = resolver.next().await;
    assert_eq!((code(&ready), Message::from_vec(&ready.octets).unwrap().answers.len()), (ResponseCode::NoError, 1));
    let counts = resolver.tally.get();
    assert_eq!((counts.forwarded, counts.relayed, counts.disbelieved), (1, 1, 2));
}

/// A question that came on a connection is asked on one; a lie there ends the attempt, and the next one brings the answer, longer than any datagram.
#[tokio::test]
async fn questions_of_streams_are_asked_in_streams() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let server = listener.local_addr().unwrap();
    thread::spawn(move || {
        for (attempt, stream) in listener.incoming().enumerate() {
            let (mut stream, mut length) = (stream.unwrap(), [0; 2]);
            stream.read_exact(&mut length).unwrap();
            let mut octets = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut octets).unwrap();
            let mut answer = good(&Message::from_vec(&octets).unwrap());
            answer.answers = vec![answer.answers[0].clone(); 2000];
            answer.metadata.id ^= u16::from(attempt == 0);
            stream.write_all(&framed(&answer.to_vec().unwrap())).unwrap();
        }
    });
    let mut message = Message::new(8, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii("example.org.").unwrap(), RecordType::A));
    let question = Question::parse(&message.to_vec().unwrap(), STREAM).unwrap();
    let mut resolver = resolver(vec![server]);
    assert!(resolver.ask(1, 8, question).is_none());
    let ready = resolver.next().await;
    assert_eq!((code(&ready), Message::from_vec(&ready.octets).unwrap().answers.len()), (ResponseCode::NoError, 2000));
    assert_eq!(resolver.tally.get().disbelieved, 1);
}

/// Each question is asked from another port and with another id.
#[tokio::test]
async fn ids_and_ports_are_drawn_anew() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let socket = Blocking::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (server, log) = (socket.local_addr().unwrap(), Arc::clone(&seen));
    thread::spawn(move || {
        let mut octets = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut octets) {
            let asked = Message::from_vec(&octets[..length]).unwrap();
            log.lock().unwrap().push((from.port(), asked.metadata.id));
            socket.send_to(&good(&asked).to_vec().unwrap(), from).unwrap();
        }
    });
    let mut resolver = resolver(vec![server]);
    for _ in 0..20 {
        assert!(resolver.ask(1, 5, question(5)).is_none());
        resolver.next().await;
    }
    let seen = seen.lock().unwrap();
    let distinct = |values: Vec<u16>| values.into_iter().collect::<std::collections::BTreeSet<u16>>().len();
    let (ports, ids) = (seen.iter().map(|(port, _)| *port).collect(), seen.iter().map(|(_, id)| *id).collect());
    // 20 of 28,000 ports and of 65,536 ids: that more than four are drawn twice does not happen.
    assert!(distinct(ports) > 15 && distinct(ids) > 15, "{seen:?}");
}

/// One that fails and one that is not there make room for one that answers; without any the guest hears so.
#[tokio::test]
async fn resolvers_are_asked_one_after_the_other() {
    let failing = upstream(|asked| {
        let mut failure = Message::response(asked.metadata.id, OpCode::Query);
        failure.add_queries(asked.queries.clone());
        failure.metadata.response_code = ResponseCode::ServFail;
        vec![failure]
    });
    // A socket that hears one peer only refuses all others.
    let deaf = Blocking::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    deaf.connect((Ipv4Addr::LOCALHOST, 9)).unwrap();
    let nobody = deaf.local_addr().unwrap();
    let mut all = resolver(vec![failing, nobody, upstream(|asked| vec![good(asked)])]);
    assert!(all.ask(1, 9, question(9)).is_none());
    assert_eq!(code(&all.next().await), ResponseCode::NoError);
    let mut without = resolver(vec![nobody]);
    assert!(without.ask(1, 9, question(9)).is_none());
    assert_eq!(code(&without.next().await), ResponseCode::ServFail);
    assert_eq!(without.tally.get().unanswered, 1);
    let refused = resolver(vec![]).ask(1, 9, question(9)).unwrap();
    assert_eq!(code(&refused), ResponseCode::Refused);
}

/// A liar that never stops ends an attempt, not the host's patience.
#[tokio::test]
async fn endless_lies_are_given_up() {
    let server = upstream(|asked| {
        let mut lie = good(asked);
        lie.metadata.id ^= 0x55;
        vec![lie; WRONG_MAX]
    });
    let mut resolver = resolver(vec![server]);
    assert!(resolver.ask(1, 3, question(3)).is_none());
    assert_eq!(code(&resolver.next().await), ResponseCode::ServFail);
    let counts = resolver.tally.get();
    assert_eq!(counts.unanswered, 1);
    // A machine that stands still meanwhile reads fewer of them before an attempt is over.
    assert!((1..=u64::try_from(WRONG_MAX * ATTEMPTS_MAX).unwrap()).contains(&counts.disbelieved), "{counts:?}");
}

/// A flood of some ports is bounded, and another port's question still goes out, in place of one of theirs.
#[tokio::test]
async fn a_flood_of_some_ports_leaves_room_for_another() {
    let mut resolver = resolver(vec![upstream(|_| vec![])]);
    let floods = u32::try_from(ALL_MAX / PORT_MAX).unwrap();
    for port in 0..floods {
        for _ in 0..PORT_MAX {
            assert!(resolver.ask(port, 1, question(1)).is_none());
        }
        assert_eq!(code(&resolver.ask(port, 2, question(2)).unwrap()), ResponseCode::ServFail, "its own bound");
    }
    let displaced = resolver.ask(floods, 4, question(4)).unwrap();
    assert_eq!((code(&displaced), displaced.caller), (ResponseCode::ServFail, 1));
    assert_eq!(resolver.waiting.len(), ALL_MAX);
    assert!(resolver.waiting.values().any(|waiting| waiting.caller == 4));
}
