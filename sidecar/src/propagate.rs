//! What an RPC's header says of its trace, and what it says when it goes on.
//!
//! A caller that records gets our span between its own and that of the next hop; a caller that does not record is left
//! alone; a caller without a trace gets one, recorded or not, so that the next hop does not decide again. The forms in
//! which it came are those in which it goes on.

use std::time::Instant;

use crate::http2::hpack::{Fields, Interner, Name, Names};
use crate::telemetry::trace::b3::{self, B3, Decision};
use crate::telemetry::trace::{Context, Ids, Propagators, Settings, SpanId, TraceId, binary, is_sampled, w3c};
use crate::telemetry::{Kind, Queue, Span};

/// Where one worker's spans begin and end.
#[derive(Debug)]
pub struct Tracing {
    propagators: Propagators,
    parent_based: bool,
    threshold: u64,
    ids: Ids,
    queue: Queue,
}

/// Fields that may say what trace this is.
const CARRIERS: Names = Names::of(&[Name::Traceparent, Name::B3, Name::GrpcTraceBin]);

/// What the caller says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    /// Nothing, or nothing that can be understood.
    Silent,
    /// It does not record, in a trace that may have no name.
    Declines,
    /// It wants this recorded, and has no trace yet.
    Asks,
    /// It has a span in a trace, and leaves the decision to us.
    Leaves(TraceId, SpanId),
    /// It has a span in a trace, recorded or not.
    Decided(Context),
}

/// The forms in which something was found, or is to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Forms {
    w3c: bool,
    /// A `tracestate` belongs to a `traceparent` that was understood.
    keeps_state: bool,
    b3: bool,
    b3_multi: bool,
    binary: bool,
    /// B3 is written with a trace id of 16 digits.
    short: bool,
    /// B3's decision was `d`.
    debug: bool,
}

impl Tracing {
    /// Begins spans as the settings say; those that end go into `queue`.
    pub fn new(settings: &Settings, queue: Queue) -> Tracing {
        Tracing {
            propagators: settings.propagators,
            parent_based: settings.sampler.parent_based,
            threshold: settings.sampler.root.threshold(),
            ids: Ids::new(),
            queue,
        }
    }

    /// An RPC began: does the work on its header list, and returns its span if it is recorded.
    ///
    /// An RPC that is not recorded pays for the question, and for one field if its caller has no trace.
    #[inline]
    pub fn begin(&mut self, head: &mut Fields, interner: &mut Interner, kind: Kind, now: Instant) -> Option<Box<Span>> {
        if !head.names().has_any(CARRIERS) {
            let trace_id = self.ids.trace_id();
            let forms = self.first_forms();
            return self.begin_root(
                trace_id,
                is_sampled(trace_id, self.threshold),
                forms,
                head,
                interner,
                kind,
                now,
            );
        }
        if self.parent_based && self.propagators.w3c {
            let value = head.only_value_of(Name::Traceparent, interner);
            if value.is_some_and(w3c::is_plainly_unsampled) {
                return None;
            }
        }
        self.begin_after(head, interner, kind, now)
    }

    /// The RPC ended, and its span has been told so: off to the collector.
    pub fn end(&self, span: Box<Span>) {
        self.queue.push(span);
    }

    /// Continues what the caller began.
    #[inline(never)]
    fn begin_after(
        &mut self,
        head: &mut Fields,
        interner: &mut Interner,
        kind: Kind,
        now: Instant,
    ) -> Option<Box<Span>> {
        let (caller, mut forms) = self.look(head, interner);
        if forms == Forms::default() {
            forms = self.first_forms();
        }
        let (trace_id, parent, sampled, random) = match caller {
            Caller::Declines if self.parent_based => return None,
            Caller::Decided(Context { sampled: false, .. }) if self.parent_based => return None,
            Caller::Silent | Caller::Asks | Caller::Declines => {
                let trace_id = self.ids.trace_id();
                let sampled = is_sampled(trace_id, self.threshold) || self.parent_based && caller == Caller::Asks;
                if !sampled && caller == Caller::Declines {
                    return None;
                }
                return self.begin_root(trace_id, sampled, forms, head, interner, kind, now);
            }
            Caller::Leaves(trace_id, parent) => (trace_id, parent, is_sampled(trace_id, self.threshold), false),
            Caller::Decided(context) => {
                let Context {
                    trace_id,
                    span_id,
                    random,
                    ..
                } = context;
                if !self.parent_based && !is_sampled(trace_id, self.threshold) {
                    // We take no part in this trace: the caller's span stays the parent of the next.
                    return None;
                }
                (trace_id, span_id, true, random)
            }
        };
        let context = Context {
            trace_id,
            // Where nothing is recorded, there is no span of ours between the caller's and the next.
            span_id: if sampled { self.ids.span_id() } else { parent },
            sampled,
            random,
        };
        write(&context, sampled.then_some(parent), forms, head, interner);
        sampled.then(|| span(context, Some(parent), head, interner, kind, now))
    }

    #[expect(clippy::too_many_arguments, reason = "it is the end of two functions, in line")]
    #[inline(always)]
    fn begin_root(
        &mut self,
        trace_id: TraceId,
        sampled: bool,
        forms: Forms,
        head: &mut Fields,
        interner: &mut Interner,
        kind: Kind,
        now: Instant,
    ) -> Option<Box<Span>> {
        let context = Context {
            trace_id,
            span_id: self.ids.span_id(),
            sampled,
            random: false,
        };
        write(&context, None, forms, head, interner);
        sampled.then(|| span(context, None, head, interner, kind, now))
    }

    /// How a trace that begins here goes on.
    fn first_forms(&self) -> Forms {
        let Propagators {
            begin_w3c,
            begin_b3,
            begin_b3_multi,
            ..
        } = self.propagators;
        Forms {
            w3c: begin_w3c,
            b3: begin_b3,
            b3_multi: begin_b3_multi,
            ..Forms::default()
        }
    }

    /// What the caller says, and in which of the forms that we read there is something, be it right or wrong.
    fn look(&self, head: &Fields, interner: &Interner) -> (Caller, Forms) {
        let mut forms = Forms::default();
        let mut said = Caller::Silent;
        let mut hear = |caller| {
            if said == Caller::Silent {
                said = caller;
            }
        };
        // Of two that contradict each other, neither is believed.
        let once = |name| head.only_value_of(name, interner);
        if self.propagators.w3c && head.names().has(Name::Traceparent) {
            let context = once(Name::Traceparent).and_then(w3c::parse);
            (forms.w3c, forms.keeps_state) = (true, context.is_some());
            hear(context.map_or(Caller::Silent, Caller::Decided));
        }
        if head.names().has(Name::B3) {
            let fields = B3Fields::of(head, interner);
            forms.b3 = self.propagators.b3 && fields.single.is_some();
            forms.b3_multi = self.propagators.b3_multi && fields.has_multi;
            let single = fields.single.filter(|_| forms.b3).and_then(b3::parse_single);
            let multi = || Some(&fields.multi).filter(|_| forms.b3_multi).and_then(b3::parse_multi);
            if let Some(b3) = single.or_else(multi) {
                forms.short = b3.short;
                forms.debug = b3.decision == Decision::Debug;
                hear(of_b3(b3));
            }
        }
        if head.names().has(Name::GrpcTraceBin) {
            forms.binary = true;
            hear(
                once(Name::GrpcTraceBin)
                    .and_then(binary::parse)
                    .map_or(Caller::Silent, Caller::Decided),
            );
        }
        (said, forms)
    }
}

fn of_b3(b3: B3) -> Caller {
    match (b3.ids, b3.decision) {
        (None, Decision::Deny | Decision::Deferred) => Caller::Declines,
        (None, Decision::Accept | Decision::Debug) => Caller::Asks,
        (Some((trace_id, span_id)), Decision::Deferred) => Caller::Leaves(trace_id, span_id),
        (Some((trace_id, span_id)), decision) => Caller::Decided(Context {
            trace_id,
            span_id,
            sampled: decision != Decision::Deny,
            random: false,
        }),
    }
}

#[derive(Default)]
struct B3Fields<'a> {
    single: Option<&'a [u8]>,
    multi: b3::Multi<'a>,
    has_multi: bool,
}

impl<'a> B3Fields<'a> {
    /// The first of each name counts.
    fn of(head: &'a Fields, interner: &'a Interner) -> B3Fields<'a> {
        let mut fields = B3Fields::default();
        for field in head.iter(interner).filter(|field| field.name == Name::B3) {
            let place = match field.name_text {
                b"b3" => &mut fields.single,
                b"x-b3-traceid" => &mut fields.multi.trace_id,
                b"x-b3-spanid" => &mut fields.multi.span_id,
                b"x-b3-sampled" => &mut fields.multi.sampled,
                b"x-b3-flags" => &mut fields.multi.flags,
                _ => continue,
            };
            place.get_or_insert(field.value);
            fields.has_multi |= field.name_text != b"b3";
        }
        fields
    }
}

/// Writes where the RPC stands into its header list, in place of what stood there.
///
/// Where there was no `traceparent`, or none that can be understood, a `tracestate` that came belongs to nothing, and goes
/// (W3C Trace Context, 3.3).
#[inline(always)]
fn write(context: &Context, parent: Option<SpanId>, forms: Forms, head: &mut Fields, interner: &mut Interner) {
    if forms.w3c {
        head.remove_all(Name::Traceparent, interner);
        if !forms.keeps_state {
            head.remove_all(Name::Tracestate, interner);
        }
        head.push_ours(Name::Traceparent, b"traceparent", &w3c::format(context));
    }
    if forms.b3 || forms.b3_multi {
        write_b3(context, parent, forms, head, interner);
    }
    if forms.binary {
        head.remove_all(Name::GrpcTraceBin, interner);
        head.push(b"grpc-trace-bin", &binary::format(context), false);
    }
}

#[inline(never)]
fn write_b3(context: &Context, parent: Option<SpanId>, forms: Forms, head: &mut Fields, interner: &mut Interner) {
    // Fields of other names that begin so are somebody else's, and x-b3-flags stays as it came.
    let ours = |name: &[u8]| match name {
        b"b3" => forms.b3,
        b"x-b3-traceid" | b"x-b3-spanid" | b"x-b3-parentspanid" | b"x-b3-sampled" => forms.b3_multi,
        _ => false,
    };
    let kept: Vec<[Box<[u8]>; 2]> = head
        .iter(interner)
        .filter(|field| field.name == Name::B3 && !ours(field.name_text))
        .map(|field| [field.name_text.into(), field.value.into()])
        .collect();
    head.remove_all(Name::B3, interner);
    for [name, value] in kept {
        head.push(&name, &value, false);
    }
    let decision = match (context.sampled, forms.debug) {
        (true, true) => Decision::Debug,
        (true, false) => Decision::Accept,
        (false, _) => Decision::Deny,
    };
    if forms.b3 {
        let text = b3::format_single(context, forms.short, decision, parent);
        head.push(b"b3", text.as_ref(), false);
    }
    if forms.b3_multi {
        head.push(
            b"x-b3-traceid",
            b3::format_trace_id(context.trace_id, forms.short).as_ref(),
            false,
        );
        head.push(b"x-b3-spanid", b3::format_span_id(context.span_id).as_ref(), false);
        if let Some(parent) = parent {
            head.push(b"x-b3-parentspanid", b3::format_span_id(parent).as_ref(), false);
        }
        // Debug implies it, and is said by x-b3-flags.
        if !forms.debug {
            head.push(b"x-b3-sampled", if context.sampled { b"1" } else { b"0" }, false);
        }
    }
}

#[cold]
fn span(
    context: Context,
    parent: Option<SpanId>,
    head: &Fields,
    interner: &Interner,
    kind: Kind,
    now: Instant,
) -> Box<Span> {
    let path = head.value_of(Name::Path, interner).unwrap_or_default();
    let mut span = Box::new(Span::new(kind, context, parent, path, now));
    if let Some(authority) = head.value_of(Name::Authority, interner) {
        span.server(authority);
    }
    span
}

#[cfg(test)]
mod tests;
