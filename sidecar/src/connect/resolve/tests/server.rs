//! A name server that says what a test tells it to, and remembers what it was asked.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use hickory_resolver::proto::{
    op::{Message, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{CNAME, SRV},
    },
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

/// What it says to a question.
#[derive(Debug, Clone)]
pub(super) enum Reply {
    /// These records, with this TTL in seconds.
    Records(Vec<RData>, u32),
    /// This code and no records.
    Code(ResponseCode),
    /// Nothing.
    Silence,
}

/// What it was asked, when, by TCP or not, and with EDNS or without.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) at: Instant,
    pub(super) name: String,
    pub(super) kind: RecordType,
    pub(super) tcp: bool,
    pub(super) edns: bool,
}

/// How a server answers EDNS that does not know it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refusal {
    pub(super) code: ResponseCode,
    /// Whether the answer repeats the question.
    pub(super) with_question: bool,
}

/// A name server on loopback. A name that it was told nothing of does not exist.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) addr: SocketAddr,
    script: Arc<Mutex<Script>>,
}

#[derive(Default)]
struct Script {
    replies: HashMap<(String, RecordType), Reply>,
    /// Instead of any other reply.
    always: Option<Reply>,
    /// Before any other reply, to whoever asks with EDNS.
    refuses_edns: Option<Refusal>,
    asked: Vec<Asked>,
}

impl Server {
    /// Listens on a port of 127.0.0.1 that the kernel chooses.
    pub(super) async fn start() -> Self {
        Self::at("127.0.0.1:0".parse().expect("an address")).await
    }

    pub(super) async fn at(addr: SocketAddr) -> Self {
        let script = Arc::new(Mutex::new(Script::default()));
        let (tcp, udp) = loop {
            let tcp = TcpListener::bind(addr).await.expect("a free port");
            let same = tcp.local_addr().expect("it is bound");
            match UdpSocket::bind(same).await {
                Ok(udp) => break (tcp, udp),
                Err(error) if addr.port() == 0 => drop(error),
                Err(error) => panic!("cannot bind {same}: {error}"),
            }
        };
        let addr = tcp.local_addr().expect("it is bound");
        tokio::spawn(serve_udp(udp, script.clone()));
        tokio::spawn(serve_tcp(tcp, script.clone()));
        Self { addr, script }
    }

    pub(super) fn say(&self, name: &str, kind: RecordType, reply: Reply) {
        self.script.lock().replies.insert((name.to_owned(), kind), reply);
    }

    /// Addresses of a name, of whatever family; the other family has no records.
    pub(super) fn has(&self, name: &str, ttl: u32, ips: &[&str]) {
        let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().expect("an address")).collect();
        let (v4, v6): (Vec<_>, Vec<_>) = ips.into_iter().partition(IpAddr::is_ipv4);
        for (kind, ips) in [(RecordType::A, v4), (RecordType::AAAA, v6)] {
            let records: Vec<_> = ips.into_iter().map(RData::from).collect();
            let none = Reply::Code(ResponseCode::NoError);
            self.say(
                name,
                kind,
                if records.is_empty() {
                    none
                } else {
                    Reply::Records(records, ttl)
                },
            );
        }
    }

    pub(super) fn has_services(&self, name: &str, ttl: u32, services: &[(u16, u16, u16, &str)]) {
        let records = services.iter().map(|(priority, weight, port, target)| {
            RData::SRV(SRV::new(
                *priority,
                *weight,
                *port,
                Name::from_ascii(target).expect("a name"),
            ))
        });
        self.say(name, RecordType::SRV, Reply::Records(records.collect(), ttl));
    }

    pub(super) fn has_alias(&self, name: &str, ttl: u32, of: &str) {
        let record = RData::CNAME(CNAME(Name::from_ascii(of).expect("a name")));
        for kind in [RecordType::A, RecordType::AAAA] {
            self.say(name, kind, Reply::Records(vec![record.clone()], ttl));
        }
    }

    /// Says this to everything from now on, or what was told of each name again.
    pub(super) fn always(&self, reply: Option<Reply>) {
        self.script.lock().always = reply;
    }

    /// Knows no EDNS from now on.
    pub(super) fn refuse_edns(&self, refusal: Refusal) {
        self.script.lock().refuses_edns = Some(refusal);
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.script.lock().asked.clone()
    }

    pub(super) fn times_asked(&self, name: &str, kind: RecordType) -> usize {
        self.asked()
            .iter()
            .filter(|asked| asked.name == name && asked.kind == kind)
            .count()
    }

    pub(super) fn forget(&self) {
        self.script.lock().asked.clear();
    }
}

async fn serve_udp(socket: UdpSocket, script: Arc<Mutex<Script>>) {
    let mut buffer = [0; 4096];
    while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
        if let Some(reply) = answer(&buffer[..len], false, &script) {
            drop(socket.send_to(&reply, from).await);
        }
    }
}

async fn serve_tcp(listener: TcpListener, script: Arc<Mutex<Script>>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(serve_stream(stream, script.clone()));
    }
}

async fn serve_stream(mut stream: TcpStream, script: Arc<Mutex<Script>>) {
    while let Ok(len) = stream.read_u16().await {
        let mut question = vec![0; usize::from(len)];
        if stream.read_exact(&mut question).await.is_err() {
            return;
        }
        if let Some(reply) = answer(&question, true, &script) {
            let len = u16::try_from(reply.len()).expect("scripts fit into a message");
            let framed = [&len.to_be_bytes()[..], &reply].concat();
            if stream.write_all(&framed).await.is_err() {
                return;
            }
        }
    }
}

fn answer(question: &[u8], tcp: bool, script: &Mutex<Script>) -> Option<Vec<u8>> {
    let question = Message::from_vec(question).ok()?;
    let query = question.queries.first()?.clone();
    let (name, kind) = (query.name().to_lowercase().to_ascii(), query.query_type());
    let mut script = script.lock();
    script.asked.push(Asked {
        at: Instant::now(),
        name: name.clone(),
        kind,
        tcp,
        edns: question.edns.is_some(),
    });
    let refusal = script.refuses_edns.filter(|_| question.edns.is_some());
    if let Some(Refusal { code, with_question }) = refusal {
        let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
        reply.metadata.response_code = code;
        if with_question {
            reply.add_query(query);
        }
        return Some(reply.to_vec().expect("a message of ours"));
    }
    let told = script
        .always
        .clone()
        .or_else(|| script.replies.get(&(name, kind)).cloned());
    let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
    reply.add_query(query.clone());
    match told.unwrap_or(Reply::Code(ResponseCode::NXDomain)) {
        Reply::Silence => return None,
        Reply::Code(code) => reply.metadata.response_code = code,
        Reply::Records(records, ttl) => {
            for record in records {
                reply.add_answer(Record::from_rdata(query.name().clone(), ttl, record));
            }
        }
    }
    let bytes = reply.to_vec().expect("a message of ours");
    let most = question.edns.as_ref().map_or(512, |_| 1232);
    if tcp || bytes.len() <= most {
        return Some(bytes);
    }
    let mut short = Message::response(question.metadata.id, question.metadata.op_code);
    short.add_query(query);
    short.metadata.truncation = true;
    Some(short.to_vec().expect("a message of ours"))
}
