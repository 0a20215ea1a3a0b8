//! A caller and a server, members of one mesh, that say as much as they can; a stranger; and secrets in their surroundings.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use parking_lot::Mutex;
use support::{Control, Dns, Family, Member, Mesh, Pod, Sidecar, Token, lent};

use super::plants::Plants;
use crate::application::{Answer, Application, Choose, Reply};
use crate::collector::{Collector, GRPC, HTTP};
use crate::frames;

/// Whom the caller calls.
pub(crate) const NAME: &str = "app.shop.svc.cluster.local";
/// The application's gRPC.
pub(crate) const H2: u16 = 10000;
/// It says farewell to every call, in GOAWAY.
pub(crate) const FAREWELL: u16 = 10003;
/// It answers calls in HTTP/1.
pub(crate) const OTHER_HTTP: u16 = 10004;
/// It answers calls with fields that none may have.
pub(crate) const MALFORMED: u16 = 10005;
/// It answers calls with a page.
pub(crate) const WEB_PAGE: u16 = 10006;
/// A web server.
pub(crate) const HTTP1: u16 = 8080;
/// A web server that knows no HTTP.
pub(crate) const BAD_HTTP1: u16 = 8081;
/// It speaks something else.
pub(crate) const TUNNEL: u16 = 7000;

/// Something that was said, and where.
pub(crate) struct Said {
    pub(crate) place: String,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) struct World {
    pub(crate) control: Control,
    pub(crate) caller: Pod,
    pub(crate) server: Pod,
    pub(crate) stranger: Pod,
    pub(crate) collector: Collector,
    pub(crate) application: Application,
    /// What the caller heard.
    pub(crate) answers: Mutex<Vec<u8>>,
    sidecars: Vec<(&'static str, Sidecar)>,
    _dns: Dns,
}

impl World {
    pub(crate) fn new(mesh: &Mesh, form: &str, protocol: &str, plants: &mut Plants) -> Result<World> {
        let mut control = mesh.control_to_be(&["--log-format", form])?;
        control.set_environment(&[
            ("AWS_SECRET_ACCESS_KEY", &plants.text("a variable of control's")),
            (
                "PORTUNUS_PASSWORD",
                &plants.text("a variable of control's that looks like ours"),
            ),
        ]);
        control.launch()?;
        let dns = mesh.dns()?;
        control.service("app", H2)?;
        control.apply(
            "policy",
            "apiVersion: portunus.dev/v1alpha1\nkind: OutboundPolicy\nmetadata: {name: app, namespace: shop}\n\
             spec:\n  targetRefs: [{kind: Service, name: app}]\n  healthCheck: {mode: Check, interval: 1s}\n",
        )?;
        let pod = |name| mesh.pod(name);
        let (caller, server, stranger, collecting) =
            (pod("caller")?, pod("server")?, pod("stranger")?, pod("collector")?);
        let collector = Collector::complaining(&collecting, 4)?;
        let port = if protocol == "grpc" { GRPC } else { HTTP };
        let at = format!("http://{}", collecting.at(Family::V4, port)?);
        let key = plants.text("a key for the collector");
        let headers = format!(
            "authorization=Bearer {key},x-team={}",
            plants.text("another key for it")
        );
        let settings = |name: &'static str, plants: &mut Plants| {
            let own = |what: &str| format!("{what} of {name}'s sidecar");
            let said = |key: &str, value: &str| (key.to_owned(), value.to_owned());
            vec![
                said("PORTUNUS_LOG_LEVEL", "trace"),
                said("PORTUNUS_LOG_FORMAT", form),
                said("PORTUNUS_ACCESS_LOG", form),
                said("PORTUNUS_TRACE_SAMPLING", "100"),
                said("OTEL_EXPORTER_OTLP_ENDPOINT", &at),
                said("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
                said("OTEL_EXPORTER_OTLP_HEADERS", &headers),
                said("OTEL_METRICS_EXPORTER", "otlp"),
                said("OTEL_METRIC_EXPORT_INTERVAL", "500"),
                said("OTEL_SERVICE_NAME", name),
                said("DATABASE_PASSWORD", &plants.text(&own("a variable"))),
                said(
                    "PORTUNUS_JOIN_TOKEN",
                    &plants.token(&own("a token in a variable that nobody reads,")),
                ),
            ]
        };
        let ports = [H2, FAREWELL, OTHER_HTTP, MALFORMED, WEB_PAGE, HTTP1, BAD_HTTP1, TUNNEL];
        let mut sidecars = Vec::new();
        for (name, pod, app, ports) in [
            ("caller", &caller, "caller", &[][..]),
            ("server", &server, "app", &ports),
        ] {
            let settings = settings(name, plants);
            let settings = lent(&settings);
            let member = Member {
                account: name,
                app,
                ports,
            };
            sidecars.push((name, pod.member(&control, &member, &settings)?));
            let token = fs::read_to_string(pod.folder().join("join-token"))?;
            plants.known(&format!("the join token of {name}"), token.as_bytes());
            plants.known(&format!("the bits of the join token of {name}"), &bits(&token)?);
        }
        dns.set(NAME, &server.addresses(), 5)?;
        for file in ["issuer.pem", "root-key.pem"] {
            let text = fs::read_to_string(control.state().join(file))?;
            let key = text.split("PRIVATE KEY-----\n").nth(1).context("there is a key")?;
            // Its first digits are those of every key of its kind.
            let line = key.lines().nth(1).context("it has lines")?;
            plants.known(&format!("the key of control's {file}"), line.as_bytes());
        }
        let application = application(&server, plants)?;
        Ok(World {
            control,
            caller,
            server,
            stranger,
            collector,
            application,
            answers: Mutex::default(),
            sidecars,
            _dns: dns,
        })
    }

    /// A port of the server's.
    pub(crate) fn at(&self, port: u16) -> Result<SocketAddr> {
        self.server.at(Family::V4, port)
    }

    /// Remembers what the caller heard.
    pub(crate) fn heard(&self, answer: Vec<u8>) {
        self.answers.lock().extend(answer);
    }

    /// All that was to reach the application or its caller did.
    pub(crate) fn everything_arrived(&self, plants: &Plants) -> Result<()> {
        let (asked, answered) = (self.application.heard(), self.answers.lock().clone());
        for (heard, places) in [(&asked, super::carried::TO_THE_APPLICATION), (&answered, ANSWERED)] {
            for place in places {
                ensure!(
                    plants.arrived(place, heard),
                    "{place} did not arrive: {}",
                    heard.escape_ascii()
                );
            }
        }
        let exports = self.collector.exports();
        let key = |place| {
            exports
                .iter()
                .any(|export| plants.arrived(place, export.headers.as_bytes()))
        };
        ensure!(
            key("a key for the collector") && key("another key for it"),
            "the collector has not got its keys"
        );
        Ok(())
    }

    /// All pages of all admin ports, and what the system shows of each process.
    pub(crate) fn pages(&self) -> Result<Vec<Said>> {
        let mut said = Vec::new();
        for page in ["/live", "/ready", "/metrics", "/source"] {
            said.push(Said {
                place: format!("control's {page}"),
                bytes: self.control.admin(page)?.body.into(),
            });
        }
        let mut processes = vec![("control", self.control.program()?.pid())];
        for (name, sidecar) in &self.sidecars {
            for page in ["/live", "/ready", "/metrics", "/config", "/endpoints"] {
                said.push(Said {
                    place: format!("{name}'s {page}"),
                    bytes: sidecar.admin(page)?.body.into(),
                });
            }
            processes.push((name, sidecar.pid()));
        }
        for (name, pid) in processes {
            said.push(Said {
                place: format!("{name}'s /proc/cmdline"),
                bytes: fs::read(format!("/proc/{pid}/cmdline"))?,
            });
        }
        Ok(said)
    }

    /// Ends all, and returns all that was written.
    pub(crate) fn end(&mut self) -> Result<Vec<Said>> {
        let mut said = Vec::new();
        for (name, sidecar) in &mut self.sidecars {
            sidecar.stop(Duration::from_secs(15))?;
            said.push(Said {
                place: format!("log of {name}"),
                bytes: fs::read(sidecar.log())?,
            });
        }
        self.control.stop()?;
        said.push(Said {
            place: "log of control".to_owned(),
            bytes: self.control.output().into(),
        });
        Ok(said)
    }
}

/// What the caller must hear of the answers.
const ANSWERED: &[&str] = &[
    "set-cookie of an answer",
    "a field of an answer",
    "a binary field of an answer",
    "the message of an answer",
    "a trailer of an answer",
    "the grpc-message of an application",
    "the details of an application's status",
    "an answer of a web server's",
    "a cookie of a web server's",
    "an answer through a tunnel",
];

fn application(pod: &Pod, plants: &mut Plants) -> Result<Application> {
    let field = |name: &str, value: String| (name.to_owned(), value);
    let status = |code: &str| field("grpc-status", code.to_owned());
    let headers = vec![
        field("set-cookie", plants.text("set-cookie of an answer")),
        field("x-secret", plants.text("a field of an answer")),
        field("x-secret-bin", plants.binary("a binary field of an answer")),
    ];
    let trailers = vec![field("x-late-secret", plants.text("a trailer of an answer"))];
    let message = field("grpc-message", plants.text("the grpc-message of an application"));
    let details = field(
        "grpc-status-details-bin",
        plants.binary("the details of an application's status"),
    );
    let unavailable = field(
        "grpc-message",
        plants.text("the grpc-message of one that is not available"),
    );
    let health = field(
        "grpc-message",
        plants.text("the grpc-message of a health check's answer"),
    );
    let health_body = plants.text("the answer to a health check");
    let body = plants.text("the message of an answer").into_bytes();
    let good = Answer {
        headers,
        body,
        trailers: [trailers, vec![status("0")]].concat(),
        ..Answer::default()
    };
    let fails = Answer {
        trailers: vec![status("13"), message, details],
        ..Answer::default()
    };
    let away = Answer {
        trailers: vec![status("14"), unavailable],
        ..Answer::default()
    };
    let health = Answer {
        body: health_body.into_bytes(),
        trailers: vec![status("16"), health],
        ..Answer::default()
    };
    let choose: Choose = Arc::new(move |path| match path {
        "plant.Service/Fails" => Reply::Answer(fails.clone()),
        "plant.Service/Away" => Reply::Answer(away.clone()),
        "plant.Service/Resets" => Reply::Reset(h2::Reason::INTERNAL_ERROR),
        "grpc.health.v1.Health/Check" => Reply::Answer(health.clone()),
        _ => Reply::Answer(good.clone()),
    });
    let mut text = |place: &str| plants.text(place);
    let farewell = frames::server(&[frames::goaway(11, &text("debug data of a server's GOAWAY"))]);
    let other = format!(
        "HTTP/1.1 403 {}\r\nserver: {}\r\n\r\n",
        text("the reason of an answer in HTTP/1"),
        text("a field of an answer in HTTP/1")
    );
    let bad_fields = [
        (":status", text("a status that is none")),
        ("x-secret", text("a field of a bad answer")),
    ];
    let bad_fields: Vec<_> = bad_fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let kind = format!("text/html; boundary={}", text("the content type of a page"));
    let location = text("where a page leads");
    let page = [
        (":status", "302"),
        ("content-type", kind.as_str()),
        ("location", location.as_str()),
        ("grpc-message", "none"),
    ];
    let page_body = text("a page in place of a message");
    let web_page = [
        frames::headers(1, false, &page),
        frames::frame(0, 1, 1, page_body.as_bytes()),
    ];
    let answer = text("an answer of a web server's");
    let web = format!(
        "HTTP/1.1 200 OK\r\nset-cookie: session={}\r\ncontent-length: {}\r\n\r\n{answer}",
        text("a cookie of a web server's"),
        answer.len()
    );
    let bad_web = format!(
        "HTTP/1.1 200 OK\r\nbad {} field\r\n\r\n",
        text("a line of a web server's that is no field")
    );
    let others = vec![
        (FAREWELL, farewell),
        (OTHER_HTTP, other.into_bytes()),
        (MALFORMED, frames::server(&[frames::headers(1, true, &bad_fields)])),
        (WEB_PAGE, frames::server(&web_page)),
        (HTTP1, web.into_bytes()),
        (BAD_HTTP1, bad_web.into_bytes()),
        (TUNNEL, text("an answer through a tunnel").into_bytes()),
    ];
    Application::start(pod, H2, choose, others)
}

fn bits(token: &str) -> Result<Vec<u8>> {
    Token::of(token)?;
    let digits = token.as_bytes().chunks_exact(2);
    digits
        .map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?))
        .collect()
}
