//! Which forms of a trace's context are read and written (OpenTelemetry's `OTEL_PROPAGATORS`).

/// The forms that are read, and those in which a trace that begins here goes on. `grpc-trace-bin` is always read, and
/// written where it came; baggage is never touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Propagators {
    /// `traceparent` is read.
    pub w3c: bool,
    /// `b3` is read.
    pub b3: bool,
    /// `x-b3-*` are read.
    pub b3_multi: bool,
    /// A trace that begins here goes on as `traceparent`.
    pub begin_w3c: bool,
    /// A trace that begins here goes on as `b3`.
    pub begin_b3: bool,
    /// A trace that begins here goes on as `x-b3-*`.
    pub begin_b3_multi: bool,
}

impl Default for Propagators {
    /// All are read, and written where they came. A trace that begins here goes on as `traceparent`.
    fn default() -> Self {
        Propagators {
            w3c: true,
            b3: true,
            b3_multi: true,
            begin_w3c: true,
            begin_b3: false,
            begin_b3_multi: false,
        }
    }
}

impl Propagators {
    /// Reads `OTEL_PROPAGATORS`: names with commas between. What is named is read and written, and nothing else.
    pub fn parse(text: &str) -> Result<Propagators, String> {
        let mut named = Propagators {
            w3c: false,
            b3: false,
            b3_multi: false,
            begin_w3c: false,
            begin_b3: false,
            begin_b3_multi: false,
        };
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match name {
                "tracecontext" => (named.w3c, named.begin_w3c) = (true, true),
                "b3" => (named.b3, named.begin_b3) = (true, true),
                "b3multi" => (named.b3_multi, named.begin_b3_multi) = (true, true),
                "baggage" | "none" => {}
                _ => {
                    return Err(format!(
                        "{name:?} is none of those that are understood: tracecontext, baggage, b3, b3multi, none"
                    ));
                }
            }
        }
        Ok(named)
    }
}
