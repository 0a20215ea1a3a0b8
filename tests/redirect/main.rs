//! The redirect rules in real network namespaces: what goes through the proxy, what does not, and what a change keeps.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod pods;

use std::{
    collections::HashSet,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

use portunus_sidecar::redirect::{self, Layout, Missing, Outcome, Removal, Settings};
use socket2::{Domain, Protocol, Socket, Type};

use pods::{Door, NEIGHBOUR, NEIGHBOUR_V6, Namespace, POD, POD_AGAIN, POD_V6, Pair, User, v4, v6};

/// Settings that use every part of the rules.
fn with_skips() -> Settings {
    Settings {
        skip_inbound_ports: "22,9000-9002".parse().unwrap(),
        skip_outbound_ports: "25,1000-2000".parse().unwrap(),
        skip_subnets: "192.0.2.0/24,198.51.100.7,172.16.0.0/12,fd00:1::/32,fd00:2::7,fc00:8000::/17"
            .parse()
            .unwrap(),
        ..Settings::default()
    }
}

fn redirected(settings: &Settings) -> Pair {
    let pair = Pair::new();
    assert_eq!(
        pair.pod.within(|| redirect::install(settings)).unwrap(),
        Outcome::Installed(Layout::Inet)
    );
    pair
}

// ---- Outbound ----

#[test]
fn what_the_application_dials_lands_at_4140_and_its_destination_is_known() {
    let pair = redirected(&Settings::default());
    let (proxy, target) = (pair.pod.listen(4140), pair.neighbour.listen(8080));
    let mapped = v6(NEIGHBOUR.to_ipv6_mapped(), 8080);
    for (dialled, known_as) in [
        (v4(NEIGHBOUR, 8080), v4(NEIGHBOUR, 8080)),
        (v6(NEIGHBOUR_V6, 8080), v6(NEIGHBOUR_V6, 8080)),
        (mapped, v4(NEIGHBOUR, 8080)),
        // Nobody has to be there.
        (
            v4(Ipv4Addr::new(10, 77, 0, 200), 443),
            v4(Ipv4Addr::new(10, 77, 0, 200), 443),
        ),
    ] {
        let client = pair.pod.dial(User::Application, dialled).unwrap();
        let arrival = proxy.take(&client);
        assert_eq!(arrival.original_destination(), known_as);
        arrival.assert_talks_to(&client);
        target.assert_untouched();
    }
}

#[test]
fn what_the_proxy_dials_goes_straight() {
    let pair = redirected(&Settings::default());
    let (proxy, target) = (pair.pod.listen(4140), pair.neighbour.listen(8080));
    for address in [v4(NEIGHBOUR, 8080), v6(NEIGHBOUR_V6, 8080)] {
        let client = pair.pod.dial(User::Proxy, address).unwrap();
        target.take(&client);
        proxy.assert_untouched();
    }
}

#[test]
fn loopback_is_left_alone_for_everybody() {
    let pair = redirected(&Settings::default());
    let (outbound, inbound, local) = (pair.pod.listen(4140), pair.pod.listen(4143), pair.pod.listen(8080));
    for user in [User::Application, User::Proxy] {
        for address in [
            v4(Ipv4Addr::LOCALHOST, 8080),
            v4(Ipv4Addr::new(127, 8, 9, 1), 8080),
            v6(Ipv6Addr::LOCALHOST, 8080),
        ] {
            let client = pair.pod.dial(user, address).unwrap();
            local.take(&client);
            outbound.assert_untouched();
            inbound.assert_untouched();
        }
    }
}

#[test]
fn skipped_outbound_ports_are_left_alone_and_their_neighbours_are_not() {
    let pair = redirected(&with_skips());
    let proxy = pair.pod.listen(4140);
    for (port, skipped) in [
        (25, true),
        (24, false),
        (26, false),
        (999, false),
        (1000, true),
        (2000, true),
        (2001, false),
    ] {
        let target = pair.neighbour.listen(port);
        let (taken, untouched) = if skipped { (&target, &proxy) } else { (&proxy, &target) };
        leads(
            &pair.pod,
            [v4(NEIGHBOUR, port), v6(NEIGHBOUR_V6, port)],
            taken,
            untouched,
        );
    }
}

/// Whoever dials one of the addresses from there reaches one listener, and not the other.
fn leads(from: &Namespace, addresses: [SocketAddr; 2], taken: &Door, untouched: &Door) {
    for address in addresses {
        let client = from.dial(User::Application, address).unwrap();
        taken.take(&client);
        untouched.assert_untouched();
    }
}

#[test]
fn skipped_subnets_are_left_alone_and_their_neighbours_are_not() {
    let pair = redirected(&with_skips());
    let proxy = pair.pod.listen(4140);
    let target = pair.neighbour.listen(8080);
    let (pod, far) = (&pair.pod, &pair.neighbour);
    for (subnet, gateway) in [
        ("192.0.0.0/8", "10.77.0.2"),
        ("198.51.100.0/24", "10.77.0.2"),
        ("172.0.0.0/8", "10.77.0.2"),
    ] {
        pod.run(&format!("ip route add {subnet} via {gateway}"));
        far.run(&format!("ip route add local {subnet} dev lo"));
    }
    for subnet in ["fc00::/16", "fd00::/16"] {
        pod.run(&format!("ip -6 route add {subnet} via fd77::2"));
        far.run(&format!("ip -6 route add local {subnet} dev lo"));
    }
    for (address, skipped) in [
        ("192.0.2.0:8080", true),
        ("192.0.2.255:8080", true),
        ("192.0.3.0:8080", false),
        ("192.0.1.255:8080", false),
        ("198.51.100.7:8080", true),
        ("198.51.100.6:8080", false),
        ("172.31.255.255:8080", true),
        ("172.32.0.0:8080", false),
        ("[fd00:1::1]:8080", true),
        ("[fd00:1:ffff::]:8080", true),
        ("[fd00:3::1]:8080", false),
        ("[fd00:2::7]:8080", true),
        ("[fd00:2::8]:8080", false),
        ("[fc00:ffff::]:8080", true),
        ("[fc00:7fff::]:8080", false),
    ] {
        let address: SocketAddr = address.parse().unwrap();
        let client = pod.dial(User::Application, address).unwrap();
        let (taken, untouched) = if skipped { (&target, &proxy) } else { (&proxy, &target) };
        taken.take(&client);
        untouched.assert_untouched();
    }
}

#[test]
fn all_of_a_family_can_be_skipped() {
    for layout in [Layout::Inet, Layout::PerFamily] {
        let pair = Pair::new();
        let settings = Settings {
            skip_subnets: "::/0".parse().unwrap(),
            ..Settings::default()
        };
        pair.pod.within(|| redirect::install_as(&settings, layout)).unwrap();
        let (proxy, target) = (pair.pod.listen(4140), pair.neighbour.listen(8080));
        target.take(&pair.pod.dial(User::Application, v6(NEIGHBOUR_V6, 8080)).unwrap());
        proxy.take(&pair.pod.dial(User::Application, v4(NEIGHBOUR, 8080)).unwrap());
    }
}

#[test]
fn calls_from_one_source_port_to_two_destinations_do_not_get_in_each_others_way() {
    let pair = redirected(&Settings::default());
    let proxy = pair.pod.listen(4140);
    let from = v4(POD, 40_000);
    let first = v4(NEIGHBOUR, 8080);
    let second = v4(NEIGHBOUR, 8081);
    let mut kept = Vec::new();
    // Both look alike once they are redirected, so the kernel gives one of them another port on the way.
    for destination in [first, second] {
        let client = pair.pod.dial_from(from, destination).unwrap();
        let arrival = proxy.take_next();
        assert_eq!(arrival.original_destination(), destination);
        arrival.assert_talks_to(&client);
        kept.push((client, arrival));
    }
    for (client, arrival) in &kept {
        arrival.assert_talks_to(client);
    }
}

#[test]
fn link_local_addresses_are_left_alone_outbound_and_redirected_inbound() {
    let pair = redirected(&Settings::default());
    let (outbound, inbound) = (pair.pod.listen(4140), pair.pod.listen(4143));
    let target = pair.neighbour.listen(8080);
    let there = SocketAddrV6::new(pair.neighbour.link_local(), 8080, 0, pair.pod.interface());
    target.take(&pair.pod.dial(User::Application, there).unwrap());
    outbound.assert_untouched();

    let here = SocketAddrV6::new(pair.pod.link_local(), 8080, 0, pair.neighbour.interface());
    let client = pair.neighbour.dial(User::Application, here).unwrap();
    assert_eq!(inbound.take(&client).original_destination().ip(), *here.ip());
}

// ---- Inbound ----

#[test]
fn what_the_network_dials_lands_at_4143_and_its_destination_is_known() {
    let pair = redirected(&Settings::default());
    let (proxy, application) = (pair.pod.listen(4143), pair.pod.listen(8080));
    for address in [
        v4(POD, 8080),
        v4(POD_AGAIN, 8080),
        v6(POD_V6, 8080),
        v4(POD, 4140),
        v4(POD, 4143),
        v4(POD, 4192),
    ] {
        let client = pair.neighbour.dial(User::Application, address).unwrap();
        let arrival = proxy.take(&client);
        assert_eq!(arrival.original_destination(), address);
        assert_eq!(arrival.peer, client.local_addr().unwrap(), "who calls is known too");
        arrival.assert_talks_to(&client);
        application.assert_untouched();
    }
}

#[test]
fn a_caller_that_runs_as_the_proxys_user_elsewhere_is_no_exception() {
    let pair = redirected(&Settings::default());
    let proxy = pair.pod.listen(4143);
    let client = pair.neighbour.dial(User::Proxy, v4(POD, 8080)).unwrap();
    proxy.take(&client);
}

#[test]
fn the_admin_port_and_skipped_inbound_ports_are_reached_directly() {
    let pair = redirected(&with_skips());
    let proxy = pair.pod.listen(4143);
    for (port, direct) in [
        (4191, true),
        (22, true),
        (23, false),
        (8999, false),
        (9000, true),
        (9002, true),
        (9003, false),
    ] {
        let target = pair.pod.listen(port);
        let (taken, untouched) = if direct { (&target, &proxy) } else { (&proxy, &target) };
        leads(&pair.neighbour, [v4(POD, port), v6(POD_V6, port)], taken, untouched);
    }
}

#[test]
fn loopback_is_not_reached_from_the_network() {
    let pair = redirected(&Settings::default());
    let proxy = pair.pod.listen(4143);
    let local = pair.pod.listen_at(v4(Ipv4Addr::LOCALHOST, 8080));
    // The neighbour puts packets for 127.0.0.1 on the cable.
    let far = &pair.neighbour;
    far.run("ip rule add pref 10 lookup local");
    far.run("ip rule del pref 0 lookup local");
    far.run("ip rule add pref 5 lookup 100");
    far.run("ip route add 127.0.0.1/32 via 10.77.0.1 dev eth0 table 100");
    far.run("sysctl -qw net.ipv4.conf.all.route_localnet=1");
    let dial = |patience| {
        far.within(|| -> io::Result<TcpStream> {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.bind(&v4(NEIGHBOUR, 0).into())?;
            socket.connect_timeout(&v4(Ipv4Addr::LOCALHOST, 8080).into(), patience)?;
            Ok(socket.into())
        })
    };
    assert!(dial(Duration::from_millis(500)).is_err(), "nobody answers");
    proxy.assert_untouched();
    local.assert_untouched();

    // So that this test cannot pass by packets that never came: they do arrive where a rule leads them.
    pair.pod
        .nft("insert rule inet portunus inbound ip daddr 127.0.0.1 tcp dport 8080 redirect to :4143");
    let client = dial(Duration::from_secs(2)).unwrap();
    assert_eq!(
        proxy.take(&client).original_destination(),
        v4(Ipv4Addr::LOCALHOST, 8080)
    );
}

#[test]
fn a_stranger_finds_no_way_around_by_not_beginning_with_a_syn() {
    let pair = redirected(&Settings::default());
    let (proxy, application) = (pair.pod.listen(4143), pair.pod.listen(8080));
    proxy.take(&dial_after_a_lone_ack(&pair, 40_001));
    application.assert_untouched();

    // So that this test cannot pass by an attack that is none: rules that wait for a SYN are walked around.
    let only_syn = "flush chain inet portunus inbound
        add rule inet portunus inbound tcp flags & (fin | syn | rst | ack) == syn redirect to :4143
        ";
    pair.pod.nft(only_syn);
    application.take(&dial_after_a_lone_ack(&pair, 40_002));
}

/// Has the pod's connection tracking pick up a connection in the middle, then opens one with the same ports.
fn dial_after_a_lone_ack(pair: &Pair, from_port: u16) -> TcpStream {
    let dropped = || pair.pod.run("nstat -asz TcpExtTCPMD5Unexpected");
    let before = dropped();
    pair.neighbour
        .within(|| send_lone_ack(v4(NEIGHBOUR, from_port), v4(POD, 8080)))
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while dropped() == before {
        assert!(
            Instant::now() < deadline,
            "the lone ACK never arrived, or this kernel lacks CONFIG_TCP_MD5SIG"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    pair.neighbour
        .dial_from(v4(NEIGHBOUR, from_port), v4(POD, 8080))
        .unwrap()
}

/// Sends a TCP segment out of nowhere that the other side drops without a word, since it bears a signature (RFC 2385)
/// that nobody asked for: an answer would end what connection tracking has begun.
fn send_lone_ack(from: SocketAddr, to: SocketAddr) -> io::Result<()> {
    const ACK: u8 = 0x10;
    const NO_OPERATION: u8 = 1;
    const SIGNATURE: [u8; 2] = [19, 18];
    let mut segment = Vec::new();
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend(1_000_u32.to_be_bytes());
    segment.extend(2_000_u32.to_be_bytes());
    segment.extend([10 << 4, ACK]);
    segment.extend(1_024_u16.to_be_bytes());
    segment.extend([0; 4]);
    segment.extend([NO_OPERATION; 2]);
    segment.extend(SIGNATURE);
    segment.extend([0; 16]);
    let pseudo_header = [&NEIGHBOUR.octets()[..], &POD.octets(), &[0, 6, 0, segment.len() as u8]].concat();
    let words = pseudo_header.chunks(2).chain(segment.chunks(2));
    let sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let checksum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());

    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::new(from.ip(), 0).into())?;
    socket.send_to(&segment, &SocketAddr::new(to.ip(), 0).into()).map(drop)
}

#[test]
fn udp_and_icmp_pass_by() {
    let pair = redirected(&Settings::default());
    for (any, target) in [
        (v4(Ipv4Addr::UNSPECIFIED, 0), v4(NEIGHBOUR, 5353)),
        (v6(Ipv6Addr::UNSPECIFIED, 0), v6(NEIGHBOUR_V6, 5353)),
    ] {
        let server = pair.neighbour.within(|| UdpSocket::bind(target)).unwrap();
        let client = pair.pod.within(|| UdpSocket::bind(any)).unwrap();
        client.send_to(b"question", target).unwrap();
        let from = datagram(&server);
        server.send_to(b"answer", from).unwrap();
        assert_eq!(datagram(&client), target);
    }
    for (from, target) in [
        (&pair.pod, NEIGHBOUR.to_string()),
        (&pair.neighbour, POD_V6.to_string()),
    ] {
        assert!(from.run(&format!("ping -c 1 -W 5 {target}")).contains("1 received"));
    }
}

/// Where the next datagram came from.
fn datagram(socket: &UdpSocket) -> SocketAddr {
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    loop {
        match socket.recv_from(&mut [0; 16]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            answer => return answer.unwrap().1,
        }
    }
}

// ---- A pod that calls itself ----

#[test]
fn a_pod_that_calls_its_own_address_meets_its_proxy_once_and_reaches_itself() {
    let pair = redirected(&Settings::default());
    let (outbound, inbound, application) = (pair.pod.listen(4140), pair.pod.listen(4143), pair.pod.listen(8080));
    for address in [v4(POD, 8080), v4(POD_AGAIN, 8080), v6(POD_V6, 8080)] {
        let client = pair.pod.dial(User::Application, address).unwrap();
        let arrival = outbound.take(&client);
        assert_eq!(arrival.original_destination(), address);
        arrival.assert_talks_to(&client);
        application.assert_untouched();

        // The proxy goes on to where the application wanted to.
        let onward = pair.pod.dial(User::Proxy, arrival.original_destination()).unwrap();
        application.take(&onward).assert_talks_to(&onward);
        outbound.assert_untouched();
        inbound.assert_untouched();
    }
}

// ---- Changes ----

#[test]
fn a_second_run_changes_nothing_and_established_connections_go_on() {
    for layout in [Layout::Inet, Layout::PerFamily] {
        let pair = Pair::new();
        let install = || pair.pod.within(|| redirect::install_as(&with_skips(), layout)).unwrap();
        assert_eq!(install(), Outcome::Installed(layout));
        let rules = pair.pod.run("nft -a list ruleset");
        let proxy = pair.pod.listen(4140);
        let client = pair.pod.dial(User::Application, v4(NEIGHBOUR, 8080)).unwrap();
        let arrival = proxy.take(&client);
        assert_eq!(install(), Outcome::Unchanged(layout));
        assert_eq!(
            pair.pod.run("nft -a list ruleset"),
            rules,
            "down to the kernel's handles"
        );
        arrival.assert_talks_to(&client);
    }
}

#[test]
fn other_settings_take_the_place_of_the_rules_and_established_connections_go_on() {
    let pair = redirected(&Settings::default());
    let (old, new, inbound) = (pair.pod.listen(4140), pair.pod.listen(5140), pair.pod.listen(4143));
    let outward = pair.pod.dial(User::Application, v4(NEIGHBOUR, 8080)).unwrap();
    let outward_arrival = old.take(&outward);
    let inward = pair.neighbour.dial(User::Application, v6(POD_V6, 8080)).unwrap();
    let inward_arrival = inbound.take(&inward);

    let settings = Settings {
        outbound_port: 5140,
        ..with_skips()
    };
    assert_eq!(
        pair.pod.within(|| redirect::install(&settings)).unwrap(),
        Outcome::Replaced(Layout::Inet)
    );
    outward_arrival.assert_talks_to(&outward);
    inward_arrival.assert_talks_to(&inward);
    new.take(&pair.pod.dial(User::Application, v4(NEIGHBOUR, 8080)).unwrap());
    old.assert_untouched();

    let other = Pair::new();
    other.pod.within(|| redirect::install(&settings)).unwrap();
    assert_eq!(pair.pod.rules(), other.pod.rules(), "nothing is left of the old ones");
}

#[test]
fn another_layout_takes_the_place_of_the_rules_and_established_connections_go_on() {
    let pair = redirected(&Settings::default());
    let install_as = |layout| {
        pair.pod
            .within(|| redirect::install_as(&Settings::default(), layout))
            .unwrap()
    };
    let (outbound, inbound) = (pair.pod.listen(4140), pair.pod.listen(4143));
    let old_client = pair.pod.dial(User::Application, v4(NEIGHBOUR, 80)).unwrap();
    let old_arrival = outbound.take(&old_client);

    assert_eq!(install_as(Layout::PerFamily), Outcome::Replaced(Layout::PerFamily));
    assert!(!pair.pod.rules().contains("table inet"));
    old_arrival.assert_talks_to(&old_client);
    for (ours, theirs) in [(v4(POD, 80), v4(NEIGHBOUR, 80)), (v6(POD_V6, 80), v6(NEIGHBOUR_V6, 80))] {
        let client = pair.pod.dial(User::Application, theirs).unwrap();
        assert_eq!(outbound.take(&client).original_destination(), theirs);
        let client = pair.neighbour.dial(User::Application, ours).unwrap();
        assert_eq!(inbound.take(&client).original_destination(), ours);
    }
    assert_eq!(install_as(Layout::V4Only), Outcome::Replaced(Layout::V4Only));
    assert!(!pair.pod.rules().contains("table ip6"));
    assert_eq!(install_as(Layout::Inet), Outcome::Replaced(Layout::Inet));
    assert!(!pair.pod.rules().contains("table ip "));
    old_arrival.assert_talks_to(&old_client);
}

#[test]
fn whatever_somebody_changed_by_hand_is_put_right() {
    let pair = redirected(&with_skips());
    let whole = pair.pod.rules();
    for meddling in [
        "flush chain inet portunus inbound",
        "add rule inet portunus outbound tcp dport 81 return",
        "insert rule inet portunus outbound return",
        "add chain inet portunus more",
        "add chain inet portunus outbound { policy drop; }",
        "add table inet portunus { flags dormant; }",
        "delete table inet portunus",
        "add table ip portunus",
    ] {
        pair.pod.nft(meddling);
        assert_ne!(pair.pod.rules(), whole, "`{meddling}` does something");
        let outcome = pair.pod.within(|| redirect::install(&with_skips())).unwrap();
        assert!(
            matches!(outcome, Outcome::Replaced(_) | Outcome::Installed(_)),
            "`{meddling}` goes unnoticed"
        );
        assert_eq!(pair.pod.rules(), whole, "after `{meddling}`");
    }
}

#[test]
fn remove_leaves_no_trace() {
    for layout in [Layout::Inet, Layout::PerFamily] {
        let pair = Pair::new();
        pair.pod.within(|| redirect::install_as(&with_skips(), layout)).unwrap();
        let target = pair.neighbour.listen(8080);
        assert_eq!(pair.pod.within(redirect::remove).unwrap(), Removal::Removed);
        assert_eq!(pair.pod.rules(), "");
        target.take(&pair.pod.dial(User::Application, v4(NEIGHBOUR, 8080)).unwrap());
        assert_eq!(pair.pod.within(redirect::remove).unwrap(), Removal::NothingThere);
    }
}

#[test]
fn other_peoples_tables_are_left_alone() {
    let pair = Pair::new();
    pair.pod.nft(
        "table inet other {
            set portunus { type ipv4_addr; }
            chain outbound { type nat hook output priority -100; tcp dport 7 return; }
        }
        table netdev portunus { }
        ",
    );
    let theirs = pair.pod.rules();
    pair.pod.within(|| redirect::install(&with_skips())).unwrap();
    assert!(pair.pod.rules().starts_with(&theirs));
    pair.pod.within(|| redirect::install(&Settings::default())).unwrap();
    pair.pod.within(redirect::remove).unwrap();
    assert_eq!(pair.pod.rules(), theirs);
}

#[test]
fn several_runs_at_once_leave_one_whole_set_of_rules() {
    let pair = Pair::new();
    let settings = |n: u16| Settings {
        outbound_port: 5000 + n,
        ..with_skips()
    };
    let whole: HashSet<String> = (0..4)
        .map(|n| {
            let alone = Pair::new();
            alone.pod.within(|| redirect::install(&settings(n))).unwrap();
            alone.pod.rules()
        })
        .collect();
    for _ in 0..10 {
        std::thread::scope(|scope| {
            for n in 0..4 {
                let (pod, settings) = (&pair.pod, settings(n));
                scope.spawn(move || pod.within(|| redirect::install(&settings)).unwrap());
            }
        });
        assert!(whole.contains(&pair.pod.rules()));
    }
}

#[test]
fn the_longest_lists_that_settings_hold_fit_into_one_transaction() {
    let pair = Pair::new();
    let ports: Vec<String> = (0..256)
        .map(|n| format!("{}-{}", 10_000 + 10 * n, 10_001 + 10 * n))
        .collect();
    let subnets: Vec<String> = (0..256).map(|n| format!("fd00:{n:x}::/33")).collect();
    let settings = Settings {
        skip_inbound_ports: ports.join(",").parse().unwrap(),
        skip_outbound_ports: ports.join(",").parse().unwrap(),
        skip_subnets: subnets.join(",").parse().unwrap(),
        ..Settings::default()
    };
    let begun = Instant::now();
    assert_eq!(
        pair.pod.within(|| redirect::install(&settings)).unwrap(),
        Outcome::Installed(Layout::Inet)
    );
    println!("768 skips installed in {:?}", begun.elapsed());
    assert_eq!(
        pair.pod.within(|| redirect::install(&settings)).unwrap(),
        Outcome::Unchanged(Layout::Inet)
    );
    assert_eq!(pair.pod.rules().matches("skipped").count(), 768);
}

// ---- The text ----

#[test]
fn the_text_of_the_dry_run_loads_and_lists_as_the_rules_that_netlink_made() {
    for layout in [Layout::Inet, Layout::PerFamily, Layout::V4Only] {
        for settings in [Settings::default(), with_skips()] {
            let (by_text, by_netlink) = (Pair::new(), Pair::new());
            let text = redirect::render_as(&settings, layout).unwrap();
            by_text.pod.nft(&text);
            by_netlink
                .pod
                .within(|| redirect::install_as(&settings, layout))
                .unwrap();
            assert_eq!(by_text.pod.rules(), by_netlink.pod.rules());
            by_netlink.pod.nft(&text);
            assert_eq!(
                by_text.pod.rules(),
                by_netlink.pod.rules(),
                "loading it again changes nothing"
            );
        }
    }
}

// ---- Privileges ----

/// Runs one of these tests in a process of its own with these capabilities, within the pod.
fn again_with_capabilities(pair: &Pair, test: &str, capabilities: &str) -> (bool, String) {
    let output = Command::new("ip")
        .args([
            "netns",
            "exec",
            &pair.pod.name,
            "setpriv",
            "--bounding-set",
            capabilities,
            "--inh-caps",
            "-all",
        ])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(WITHIN, "1")
        .output()
        .expect("setpriv starts: install the package util-linux");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

const WITHIN: &str = "PORTUNUS_TEST_WITHIN";

#[test]
fn without_the_capability_it_says_so_and_changes_nothing() {
    if std::env::var_os(WITHIN).is_some() {
        println!("{}", redirect::install(&Settings::default()).unwrap_err());
        println!("{}", redirect::remove().unwrap_err());
        return;
    }
    let pair = redirected(&with_skips());
    let rules = pair.pod.rules();
    let test = "without_the_capability_it_says_so_and_changes_nothing";
    let (fine, said) = again_with_capabilities(&pair, test, "-net_admin");
    assert!(
        fine && said.matches("need the capability NET_ADMIN").count() == 2,
        "{said}"
    );
    assert_eq!(pair.pod.rules(), rules);
}

#[test]
fn no_other_capability_is_needed() {
    if std::env::var_os(WITHIN).is_some() {
        println!("{}", redirect::install(&with_skips()).unwrap());
        return;
    }
    let pair = Pair::new();
    let (fine, said) = again_with_capabilities(&pair, "no_other_capability_is_needed", "-all,+net_admin");
    assert!(
        fine && said.contains("redirect rules installed (one inet table)"),
        "{said}"
    );
    assert!(pair.pod.rules().contains("redirect to :4140"));
}

// ---- What the proxy sees ----

fn seen(pair: &Pair, settings: &Settings) -> Result<(), Missing> {
    pair.pod.within_as(User::Proxy, || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(redirect::installed(settings))
    })
}

#[test]
fn the_proxy_sees_whether_the_rules_are_there() {
    for layout in [Layout::Inet, Layout::PerFamily] {
        let pair = Pair::new();
        let _admin = pair.pod.listen(4191);
        let settings = Settings::default();
        assert!(matches!(seen(&pair, &settings), Err(Missing::Unanswered { .. })));
        pair.pod.within(|| redirect::install_as(&settings, layout)).unwrap();
        seen(&pair, &settings).unwrap();
        // Also with a listener for each family.
        drop(_admin);
        let _admin_v4 = pair.pod.listen_at(v4(Ipv4Addr::UNSPECIFIED, 4191));
        let missing = seen(&pair, &settings).unwrap_err();
        assert!(
            matches!(
                missing,
                Missing::Unanswered {
                    probe: SocketAddr::V6(_),
                    ..
                }
            ),
            "{missing}"
        );
        let _admin_v6 = pair.pod.listen_at(v6(Ipv6Addr::LOCALHOST, 4191));
        seen(&pair, &settings).unwrap();
        pair.pod.within(redirect::remove).unwrap();
        assert!(matches!(seen(&pair, &settings), Err(Missing::Unanswered { .. })));
    }
}

#[test]
fn the_proxy_sees_that_the_rules_of_one_family_are_missing() {
    let pair = Pair::new();
    let _admin = pair.pod.listen(4191);
    pair.pod
        .within(|| redirect::install_as(&Settings::default(), Layout::V4Only))
        .unwrap();
    let missing = seen(&pair, &Settings::default()).unwrap_err();
    assert!(
        matches!(
            missing,
            Missing::Unanswered {
                probe: SocketAddr::V6(_),
                ..
            }
        ),
        "{missing}"
    );
}

#[test]
fn an_application_on_the_probe_port_deceives_nobody_and_keeps_its_port() {
    let pair = Pair::new();
    let (_admin, application) = (pair.pod.listen(4191), pair.pod.listen(4192));
    let missing = seen(&pair, &Settings::default()).unwrap_err();
    assert!(matches!(missing, Missing::Elsewhere { .. }), "{missing}");
    let _ = application.take_next();

    pair.pod.within(|| redirect::install(&Settings::default())).unwrap();
    seen(&pair, &Settings::default()).unwrap();
    application.assert_untouched();
    let client = pair.pod.dial(User::Proxy, v4(POD, 4192)).unwrap();
    application.take(&client);
}

#[test]
fn without_ipv6_the_rules_of_ipv4_are_enough() {
    let pair = redirected(&Settings::default());
    pair.pod.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
    let _admin = pair.pod.listen_at(v4(Ipv4Addr::UNSPECIFIED, 4191));
    seen(&pair, &Settings::default()).unwrap();
    pair.pod.within(redirect::remove).unwrap();
    assert!(seen(&pair, &Settings::default()).is_err());
}
