//! A stream outlives the certificates of its connection, which control renews meanwhile; or is cut, where that is wished.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use support::{Member, Sidecar};

use crate::certificates::{A_MINUTE, opened};
use crate::shop::{Shop, certified, none_failed, timed};
use crate::stream::{Stream, streams, talk};

#[test]
fn a_stream_outlives_the_certificates_of_both_ends_and_is_counted_or_is_cut_with_the_reason_where_that_is_wished() {
    support::test(|mesh| {
        let shop = Shop::open(mesh, mesh.control(&A_MINUTE)?, 2, &[], &[])?;
        let _talkers = talk(&shop)?;
        let cutter = mesh.pod("cutter")?;
        let who = Member {
            account: "cutter",
            app: "cutter",
            ports: &[],
        };
        let cutting = cutter.member(&shop.control, &who, &[("PORTUNUS_CUT_EXPIRED_CONNECTIONS", "on")])?;
        let traffic = shop.calls(100, Duration::from_secs(200))?;
        let mut kept = Stream::begin(&shop)?;
        let mut cut = Stream::begin_from(&cutter, &shop)?;
        let (began, first) = (Instant::now(), opened(&shop.sidecar));

        // All the while both streams are in use, certificates are renewed, and new connections take the place of the old.
        let (mut replaced, mut ended) = (None, None);
        while outlived(&shop.sidecar, "outbound")? == 0.0 || ended.is_none() {
            ensure!(
                began.elapsed() < TWO_LIVES,
                "nothing has ended after {:?}",
                began.elapsed()
            );
            kept.echo().context("the stream that is to go on")?;
            if ended.is_none()
                && let Err(why) = cut.echo()
            {
                ended = Some((began.elapsed(), format!("{why:#}")));
            }
            if replaced.is_none() && opened(&shop.sidecar) >= first + 2.0 {
                replaced = Some(began.elapsed());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let replaced = replaced.context("no connection was replaced")?;
        let (cut_after, why) = ended.context("no stream was cut")?;
        println!("replaced after {replaced:?}, cut after {cut_after:?}: {why}");
        let renewed = |sidecar: &Sidecar| certified(sidecar) >= 2.0;
        ensure!(
            shop.sidecars().all(renewed) && renewed(&cutting),
            "somebody was not certified again"
        );
        ensure!(
            replaced < cut_after,
            "connections were replaced only when a certificate had ended"
        );
        ensure!(
            cut_after > A_LIFE / 2,
            "it was cut after {cut_after:?}, while its certificate was good"
        );
        ensure!(why.contains("certificate has ended"), "the cut stream was told: {why}");
        let counted = cutting.metrics()?.sum("portunus_proxy_errors_total", &[]);
        ensure!(counted >= 1.0, "the cut was not counted");
        ensure!(
            outlived(&cutting, "outbound")? == 0.0,
            "the cutter has a connection that outlived its certificate"
        );

        // The other end counts it, too, and it is as good as ever.
        let talking = || shop.greeters.iter().filter(|greeter| streams(greeter) == 1.0);
        timed(SOON, "the other end counts it", || {
            talking().any(|greeter| outlived(&greeter.sidecar, "inbound").is_ok_and(|now| now == 1.0))
        })?;
        for _ in 0..100 {
            kept.echo().context("the stream beyond its certificate")?;
        }
        println!("{} messages in {:?}", kept.echoed, began.elapsed());
        kept.finish()?;
        timed(SOON, "nothing outlives a certificate any more", || {
            outlived(&shop.sidecar, "outbound").is_ok_and(|now| now == 0.0)
        })?;
        Stream::begin_from(&cutter, &shop)?
            .finish()
            .context("a new stream of the cutter's")?;
        none_failed(&traffic.calls(), 2_000, "while certificates were renewed and ended")
    });
}

fn outlived(sidecar: &Sidecar, direction: &str) -> Result<f64> {
    let direction = [("direction", direction)];
    Ok(sidecar
        .metrics()?
        .sum("portunus_connections_past_certificate", &direction))
}

const A_LIFE: Duration = Duration::from_secs(60);
const TWO_LIVES: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(15);
