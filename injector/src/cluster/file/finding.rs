//! What was found wrong in manifests: where, and what was expected.

use std::fmt;
use std::sync::Arc;

use portunus_logbook::masked;
use serde::Serialize;

use super::yaml::At;

/// One thing to say about a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Whether it stops the whole state.
    pub severity: Severity,
    /// The file's name in its directory.
    #[serde(serialize_with = "as_text")]
    pub file: Arc<str>,
    /// From 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// From 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
    /// `Kind namespace/name`, as far as it is known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub object: String,
    /// `spec.mtls.ports[0].mode`; empty where no field is meant.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
    /// What is wrong, and what was expected.
    pub message: String,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The state is not taken.
    Mistake,
    /// The state is taken, and is probably not what was meant.
    Warning,
    /// Something was left out, rightly.
    Note,
}

/// What was found in a directory, and where the reader is.
#[derive(Debug, Default)]
pub struct Findings {
    found: Vec<Finding>,
    mistakes: usize,
    left_out: usize,
    file: Arc<str>,
    object: String,
}

/// How many findings are kept, beside the one that says that there are more; a directory of noise shall not fill the memory.
const MOST: usize = 999;

impl Findings {
    /// From now on findings are about this file.
    pub fn enter_file(&mut self, file: Arc<str>) {
        self.file = file;
        self.object.clear();
    }

    /// The file that findings are about.
    pub fn file(&self) -> Arc<str> {
        self.file.clone()
    }

    /// From now on findings are about this object of the file.
    pub fn enter_object(&mut self, object: String) {
        self.object = object;
    }

    /// A mistake.
    pub fn mistake(&mut self, at: At, field: impl Into<String>, message: impl Into<String>) {
        self.add(Severity::Mistake, at, field.into(), message.into());
    }

    /// A warning.
    pub fn warning(&mut self, at: At, field: impl Into<String>, message: impl Into<String>) {
        self.add(Severity::Warning, at, field.into(), message.into());
    }

    /// A note.
    pub fn note(&mut self, at: At, message: impl Into<String>) {
        self.add(Severity::Note, at, String::new(), message.into());
    }

    /// Whatever of it may be a token or a key is left out, wherever it stood: somebody may have put it in the wrong place.
    fn add(&mut self, severity: Severity, at: At, field: String, message: String) {
        self.mistakes += usize::from(severity == Severity::Mistake);
        if self.found.len() == MOST {
            self.left_out += 1;
            // A mistake is never lost behind others.
            if severity != Severity::Mistake || self.mistakes > MOST {
                return;
            }
            let is_lesser = |finding: &Finding| finding.severity != Severity::Mistake;
            if let Some(lesser) = self.found.iter().rposition(is_lesser) {
                self.found.remove(lesser);
            }
        }
        self.found.push(Finding {
            severity,
            file: self.file.clone(),
            line: (at.line > 0).then_some(at.line),
            column: (at.column > 0).then_some(at.column),
            object: masked(&self.object).into_owned(),
            field: masked(&field).into_owned(),
            message: masked(&message).into_owned(),
        });
    }

    /// How many mistakes there are, be they kept or not.
    pub fn mistakes(&self) -> usize {
        self.mistakes
    }

    /// All of them, by file and line.
    pub fn into_sorted(mut self) -> Vec<Finding> {
        self.found.sort_by(|a, b| {
            let key = |finding: &Finding| (finding.file.clone(), finding.line, finding.column, finding.severity);
            key(a).cmp(&key(b))
        });
        if self.left_out > 0 {
            let (kept, left_out) = (self.found.len(), self.left_out);
            self.enter_file("(all files)".into());
            self.found.push(Finding {
                severity: Severity::Warning,
                file: self.file.clone(),
                line: None,
                column: None,
                object: String::new(),
                field: String::new(),
                message: format!("{left_out} findings more are not told; mend these {kept} first"),
            });
        }
        self.found
    }
}

fn as_text<S: serde::Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Mistake => "mistake",
            Severity::Warning => "warning",
            Severity::Note => "note",
        })
    }
}

/// `FILE:LINE:COLUMN: mistake: Kind namespace/name: field: sentence`
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.escape_debug())?;
        for number in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{number}")?;
        }
        write!(f, ": {}: ", self.severity)?;
        for part in [&self.object, &self.field] {
            if !part.is_empty() {
                write!(f, "{}: ", part.escape_debug())?;
            }
        }
        // What manifests say may stand in a sentence, and it may say escape sequences of a terminal.
        for character in self.message.chars() {
            match character {
                '"' | '\'' | '\\' => write!(f, "{character}")?,
                character => write!(f, "{}", character.escape_debug())?,
            }
        }
        Ok(())
    }
}
