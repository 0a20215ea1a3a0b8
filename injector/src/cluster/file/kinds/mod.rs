//! The four kinds that are read, each in its own form. What they say of each other is judged in `judge`.

mod inbound_policy;
mod outbound_policy;
mod service;
mod workload;

use portunus_proto::Declared;

use super::fields::{Field, Fields};
use super::finding::Findings;
use super::yaml::{Node, Value};
use crate::cluster::{InboundPolicy, Labels, Name, OutboundPolicy, Service, Workload};

/// The group and version of our own kinds.
pub const OURS: &str = "portunus.dev/v1alpha1";

/// What one document says.
pub enum Read {
    /// `v1 Service`.
    Service(Service),
    /// `Workload`.
    Workload(Workload),
    /// `InboundPolicy`.
    InboundPolicy(InboundPolicy),
    /// `OutboundPolicy`.
    OutboundPolicy(OutboundPolicy),
}

/// `metadata`, as much of it as matters here.
struct Metadata {
    name: Name,
    labels: Labels,
}

/// Reads one object. `None` if it is none of ours, which is noted, or has no name, which is a mistake.
pub fn read(document: &Node, findings: &mut Findings) -> Option<(Name, Read)> {
    let whole = Field {
        node: document,
        path: String::new(),
    };
    let mut fields = Fields::of(&whole, findings)?;
    let version = fields.demand("apiVersion", "v1 or portunus.dev/v1alpha1", findings);
    let kind = fields.demand("kind", "Service, Workload, InboundPolicy or OutboundPolicy", findings);
    let version = super::fields::text(&version?, "a text", findings)?;
    let kind = super::fields::text(&kind?, "a text", findings)?;
    let ours = version.starts_with("portunus.dev/");
    if ours && version != OURS {
        let message = format!("is {version:?}; expected {OURS}, the only version there is");
        findings.mistake(document.locate("apiVersion"), "apiVersion", message);
        return None;
    }
    match (version, kind) {
        ("v1", "Service") => {
            let metadata = metadata(&mut fields, kind, false, findings)?;
            let service = service::read(&mut fields, findings)?;
            Some((metadata.name, Read::Service(service)))
        }
        (OURS, "Workload" | "InboundPolicy" | "OutboundPolicy") => {
            let metadata = metadata(&mut fields, kind, true, findings);
            let spec = fields.demand("spec", "what this object says", findings);
            let status = fields.get("status");
            fields.done(&[], findings);
            let mut spec = Fields::of(&spec?, findings)?;
            let labels = metadata.as_ref().map(|metadata| metadata.labels.clone());
            let (read, later) = match kind {
                "Workload" => {
                    workload::status(status, findings);
                    let workload = workload::read(&mut spec, labels.unwrap_or_default(), findings);
                    (Read::Workload(workload), &[][..])
                }
                "InboundPolicy" => {
                    let policy = inbound_policy::read(&mut spec, findings);
                    (Read::InboundPolicy(policy), inbound_policy::LATER)
                }
                _ => {
                    let policy = outbound_policy::read(&mut spec, findings);
                    (Read::OutboundPolicy(policy), outbound_policy::LATER)
                }
            };
            spec.done(later, findings);
            Some((metadata?.name, read))
        }
        (OURS, "Service") => {
            let message = format!("is {OURS:?}, which has no Service; expected v1");
            findings.mistake(document.locate("apiVersion"), "apiVersion", message);
            None
        }
        (OURS, _) => {
            let message = format!("is {kind:?}; expected one of Workload, InboundPolicy, OutboundPolicy");
            findings.mistake(document.locate("kind"), "kind", message);
            None
        }
        _ => {
            match meant(version, kind) {
                Some(Meant::Version(expected)) => {
                    let message = format!("is {version:?}, which has no {kind}; expected {expected}");
                    findings.mistake(document.locate("apiVersion"), "apiVersion", message);
                }
                Some(Meant::Kind(expected)) => {
                    findings.mistake(
                        document.locate("kind"),
                        "kind",
                        format!("is {kind:?}; expected {expected}"),
                    );
                }
                None => findings.note(
                    document.at,
                    format!("{version} {kind} is left out: it is not for the mesh"),
                ),
            }
            None
        }
    }
}

/// What a slip was meant to be.
enum Meant {
    Version(&'static str),
    Kind(&'static str),
}

/// Whether an object that is none of ours was meant to be: one that is left out by a slip would be missed late. Others
/// have kinds of these names, too, each in a group of its own.
fn meant(version: &str, kind: &str) -> Option<Meant> {
    let is = |name: &str| name.eq_ignore_ascii_case(kind);
    let is_ours = ["Workload", "InboundPolicy", "OutboundPolicy"].into_iter().any(is);
    match version {
        "v1" if is("Service") => Some(Meant::Kind("Service")),
        "v1" if is_ours => Some(Meant::Version(OURS)),
        _ if is_ours && is_meant_as_our_group(version) => Some(Meant::Version(OURS)),
        // Whatever has no group is Kubernetes' own, and has one version.
        _ if is("Service") && !version.contains('/') => Some(Meant::Version("v1")),
        _ => None,
    }
}

/// Whether a version has no group at all, or ours in another spelling.
fn is_meant_as_our_group(version: &str) -> bool {
    let Some((group, _)) = version.split_once('/') else {
        return true;
    };
    let group = group.trim().to_ascii_lowercase();
    group.contains("portunus") || slips(&group, "portunus.dev") <= MOST_SLIPS
}

/// So many letters may be wrong in a group that was meant to be ours.
const MOST_SLIPS: usize = 2;

/// How many letters are missing, too many or others (Levenshtein's distance); any number above for what is far too long.
fn slips(one: &str, other: &str) -> usize {
    if one.len() > 2 * other.len() {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, a) in one.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], at + 1);
        for (index, b) in other.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[index + 1];
            row[index + 1] = replaced.min(row[index] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

fn metadata(fields: &mut Fields<'_>, kind: &str, strict: bool, findings: &mut Findings) -> Option<Metadata> {
    let metadata = fields.demand("metadata", "at least a name", findings)?;
    let mut metadata = Fields::of(&metadata, findings)?;
    let namespace = match metadata.get("namespace") {
        Some(field) => super::fields::dns_label(&field, findings),
        None => Some("default"),
    };
    let name = metadata.demand("name", "a DNS label", findings);
    let name = name.and_then(|name| super::fields::dns_label(&name, findings));
    if let (Some(namespace), Some(name)) = (namespace, name) {
        findings.enter_object(format!("{kind} {namespace}/{name}"));
    }
    let labels = metadata.labels("labels", findings);
    if strict {
        for standard in [
            "annotations",
            "uid",
            "resourceVersion",
            "generation",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "managedFields",
            "ownerReferences",
            "finalizers",
            "generateName",
            "selfLink",
        ] {
            metadata.get(standard);
        }
        metadata.done(&[], findings);
    }
    Some(Metadata {
        name: Name::new(namespace?, name?),
        labels,
    })
}

/// A port's name: as in Kubernetes, a DNS label of at most 15 characters with a letter in it; a Service's may have 63.
fn port_name(field: &Field<'_>, findings: &mut Findings) -> Option<String> {
    let name = super::fields::dns_label(field, findings)?;
    Some(name.to_owned())
}

/// `appProtocol`, else what the port's name says. One that is not known is a warning, and as nothing said.
fn app_protocol(fields: &mut Fields<'_>, name: &str, findings: &mut Findings) -> Declared {
    let field = fields.get("appProtocol");
    let said = field
        .as_ref()
        .and_then(|field| super::fields::text(field, "a text", findings));
    Declared::of(said, Some(name)).unwrap_or_else(|unknown| {
        if let Some(field) = field {
            findings.warning(field.node.at, field.path, unknown.to_string());
        }
        Declared::Nothing
    })
}

/// The kind and name of a document, before it is read.
pub fn title(document: &Node) -> String {
    let kind = document.text("kind").unwrap_or("object");
    let metadata = document.get("metadata");
    let text = |key| metadata.and_then(|metadata| metadata.text(key));
    match text("name") {
        Some(name) => format!("{kind} {}/{name}", text("namespace").unwrap_or("default")),
        None => kind.to_owned(),
    }
}

const LISTS: [&str; 5] = [
    "List",
    "ServiceList",
    "WorkloadList",
    "InboundPolicyList",
    "OutboundPolicyList",
];

/// The objects of a document: itself, or what stands in a `List`.
pub fn objects<'n>(document: &'n Node, findings: &mut Findings) -> Vec<&'n Node> {
    let is_list = document.text("kind").is_some_and(|kind| kind.ends_with("List"));
    match document.get("items").map(|items| (&items.value, items.at)) {
        Some((Value::List(items), _)) if is_list => items.iter().collect(),
        Some((other, at)) if is_list => {
            findings.mistake(at, "items", format!("is {}; expected a list", other.kind()));
            Vec::new()
        }
        // Others have kinds that end so, too.
        None if LISTS.iter().any(|list| document.text("kind") == Some(list)) => {
            findings.mistake(document.at, "items", "is missing; expected a list of objects");
            Vec::new()
        }
        _ => vec![document],
    }
}
