//! Every way in which manifests can be wrong, each as a text, for the tests beside the code and for those under load.

/// Manifests of every kind, with no mistake.
pub(crate) const GOOD: &str = "\
apiVersion: v1
kind: Service
metadata: {name: greeter, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  selector: {app: greeter}
  ports:
  - {name: grpc-api, port: 80, targetPort: api}
  - {name: metrics, port: 9090, appProtocol: http}
---
apiVersion: portunus.dev/v1alpha1
kind: Workload
metadata: {name: greeter-1, namespace: shop, labels: {app: greeter}}
spec:
  serviceAccount: greeter
  addresses: [10.1.0.3, 'fd00::3']
  ports:
  - {name: api, port: 50051, appProtocol: grpc}
  weight: 3
  joinTokenSha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
---
apiVersion: portunus.dev/v1alpha1
kind: InboundPolicy
metadata: {name: all, namespace: shop}
spec:
  mtls: {mode: strict, ports: [{port: 9090, mode: permissive}]}
---
apiVersion: portunus.dev/v1alpha1
kind: OutboundPolicy
metadata: {name: greeter, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: greeter, sectionName: grpc-api}]
  balancer: {algorithm: RoundRobin, slowStart: 10s}
  healthCheck: {mode: Watch, service: shop.Greeter, interval: 5s, timeout: 500ms, unhealthyThreshold: 2, healthyThreshold: 1}
  outlier: {consecutiveFailures: 3, baseEjection: 30s, maxEjection: 5m, maxEjectionPercent: 40}
";

/// What stands in `bad.yaml` beside `GOOD`; the line and the field of the mistake; what its sentence has.
pub(crate) const MISTAKES: &[(&str, u32, &str, &str)] = &[
    // What is no YAML.
    ("kind: [\n", 1, "", "no YAML"),
    ("a: 1\na: 2\n", 2, "", "duplicate mapping key: a"),
    ("kind: x\n  spec: y\n", 2, "", "no YAML"),
    ("kind: *nobody\n", 1, "", "no YAML"),
    ("- a\n- b\n", 1, "", "expected a map"),
    ("hello\n", 1, "", "expected a map"),
    // What is no object.
    ("kind: Service\n", 1, "apiVersion", "is missing"),
    ("apiVersion: v1\n", 1, "kind", "is missing"),
    ("apiVersion: 1\nkind: Service\n", 1, "apiVersion", "in quotes"),
    (
        "apiVersion: portunus.dev/v1\nkind: Workload\n",
        1,
        "apiVersion",
        "portunus.dev/v1alpha1",
    ),
    (
        "apiVersion: portunus.dev/v1alpha1\nkind: Gateway\n",
        2,
        "kind",
        "Workload, InboundPolicy",
    ),
    (
        "apiVersion: v1\nkind: service\nmetadata: {name: a}\n",
        2,
        "kind",
        "expected Service",
    ),
    (
        "apiVersion: v1\nkind: Workload\nmetadata: {name: a}\n",
        1,
        "apiVersion",
        "expected portunus.dev/v1alpha1",
    ),
    (
        "apiVersion: portunus.io/v1alpha1\nkind: workload\nmetadata: {name: a}\n",
        1,
        "apiVersion",
        "expected portunus.dev/v1alpha1",
    ),
    (
        "apiVersion: portunus.dev/v1alpha1\nkind: Service\nmetadata: {name: a}\n",
        1,
        "apiVersion",
        "expected v1",
    ),
    ("apiVersion: v1\nkind: List\nitems: 3\n", 3, "items", "a list"),
    ("apiVersion: v1\nkind: List\n", 1, "items", "is missing"),
    (
        "apiVersion: v1alpha1\nkind: Workload\nmetadata: {name: a}\n",
        1,
        "apiVersion",
        "expected portunus.dev/v1alpha1",
    ),
    (
        "apiVersion: Portunus.Dev/v1alpha1\nkind: InboundPolicy\nmetadata: {name: a}\n",
        1,
        "apiVersion",
        "expected portunus.dev/v1alpha1",
    ),
    (
        "apiVersion: protunus.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {name: a}\n",
        1,
        "apiVersion",
        "expected portunus.dev/v1alpha1",
    ),
    (
        "apiVersion: v1beta1\nkind: Service\nmetadata: {name: a}\n",
        1,
        "apiVersion",
        "expected v1",
    ),
    ("apiVersion: v1\nkind: Service\nspec: {}\n", 1, "metadata", "is missing"),
    (
        "apiVersion: v1\nkind: Service\nmetadata: {}\n",
        3,
        "metadata.name",
        "is missing",
    ),
    (
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: Shop\n",
        4,
        "metadata.name",
        "DNS label",
    ),
    (
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: -a\n",
        4,
        "metadata.name",
        "DNS label",
    ),
    (
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: 7\n",
        4,
        "metadata.name",
        "put it in quotes",
    ),
    (
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  namespace: a.b\n",
        5,
        "metadata.namespace",
        "DNS label",
    ),
    (
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n",
        1,
        "spec",
        "is missing",
    ),
    // Service; `spec:` is line 4.
    ("S  clusterIP: 10.0.0\n", 5, "spec.clusterIP", "IP address"),
    ("S  clusterIP: 0.0.0.0\n", 5, "spec.clusterIP", "IP address"),
    ("S  clusterIP: 10.96.0.10\n", 5, "spec.clusterIP", "another Service"),
    (
        "S  clusterIPs: [10.0.0.1, 10.0.0.1]\n",
        5,
        "spec.clusterIPs[1]",
        "second time",
    ),
    ("S  selector: [app]\n", 5, "spec.selector", "map of texts"),
    ("S  selector: {app: 1}\n", 5, "spec.selector.app", "in quotes"),
    ("S  ports: 80\n", 5, "spec.ports", "a list"),
    ("S  ports: [80]\n", 5, "spec.ports[0]", "a map"),
    ("S  ports:\n  - name: a\n", 6, "spec.ports[0].port", "is missing"),
    ("S  ports:\n  - port: 0\n", 6, "spec.ports[0].port", "1 to 65535"),
    ("S  ports:\n  - port: 65536\n", 6, "spec.ports[0].port", "1 to 65535"),
    ("S  ports:\n  - port: -1\n", 6, "spec.ports[0].port", "1 to 65535"),
    ("S  ports:\n  - port: '80'\n", 6, "spec.ports[0].port", "whole number"),
    ("S  ports:\n  - port: '80'\n", 6, "spec.ports[0].port", "without quotes"),
    (
        "S  ports:\n  - port: 80\n    targetPort: '8080'\n",
        7,
        "spec.ports[0].targetPort",
        "a whole number without quotes",
    ),
    (
        "W  addresses: ['::ffff:0.0.0.0']\n",
        5,
        "spec.addresses[0]",
        "IP address",
    ),
    (
        "W  addresses: [10.0.0.1, '::ffff:10.0.0.1']\n",
        5,
        "spec.addresses[1]",
        "second time",
    ),
    ("S  ports:\n  - port: 80.5\n", 6, "spec.ports[0].port", "whole number"),
    (
        "S  ports:\n  - port: 80\n    targetPort: 99999\n",
        7,
        "spec.ports[0].targetPort",
        "1 to 65535",
    ),
    (
        "S  ports:\n  - port: 80\n    targetPort: A_b\n",
        7,
        "spec.ports[0].targetPort",
        "DNS label",
    ),
    (
        "S  ports:\n  - port: 80\n    protocol: QUIC\n",
        7,
        "spec.ports[0].protocol",
        "TCP, UDP",
    ),
    (
        "S  ports:\n  - {name: a, port: 80}\n  - {name: b, port: 80}\n",
        7,
        "spec.ports[1].port",
        "second time",
    ),
    (
        "S  ports:\n  - {name: a, port: 80}\n  - {name: a, port: 81}\n",
        7,
        "spec.ports[1].name",
        "second time",
    ),
    (
        "S  ports:\n  - {name: a, port: 80}\n  - {port: 81}\n",
        7,
        "spec.ports[1].name",
        "is missing",
    ),
    // Workload.
    (
        "W  addresses: [10.0.0.1]\n  port: 80\n",
        6,
        "spec.port",
        "is no field here",
    ),
    ("W  serviceAccount: web\n", 5, "spec.addresses", "is missing"),
    ("W  addresses: []\n", 5, "spec.addresses", "is empty"),
    ("W  addresses: 10.0.0.1\n", 5, "spec.addresses", "a list"),
    ("W  addresses: [localhost]\n", 5, "spec.addresses[0]", "IP address"),
    ("W  addresses: [224.0.0.1]\n", 5, "spec.addresses[0]", "IP address"),
    (
        "W  addresses: [10.0.0.1, 10.0.0.1]\n",
        5,
        "spec.addresses[1]",
        "second time",
    ),
    (
        "W  addresses: [10.96.0.10]\n",
        5,
        "spec.addresses[0]",
        "address of a Service",
    ),
    (
        "W  addresses: [10.1.0.3]\n  ports:\n  - port: 50051\n",
        7,
        "spec.ports[0].port",
        "another Workload",
    ),
    (
        "W  addresses: [10.0.0.1]\n  serviceAccount: a/b\n",
        6,
        "spec.serviceAccount",
        "DNS label",
    ),
    ("W  addresses: [10.0.0.1]\n  zone: 3\n", 6, "spec.zone", "in quotes"),
    (
        "W  addresses: [10.0.0.1]\n  zone: here and there\n",
        6,
        "spec.zone",
        "at most 63 letters, digits, '-', '_' and '.'",
    ),
    (
        "W  addresses: [10.0.0.1]\n  zone: -a\n",
        6,
        "spec.zone",
        "a letter or digit at both ends",
    ),
    (
        "W  addresses: [10.0.0.1]\n  weight: 0\n",
        6,
        "spec.weight",
        "from 1 to 10000",
    ),
    (
        "W  addresses: [10.0.0.1]\n  weight: 0\n",
        6,
        "spec.weight",
        "ready: false",
    ),
    (
        "W  addresses: [10.0.0.1]\n  ready: 'false'\n",
        6,
        "spec.ready",
        "is \"false\"; expected true or false",
    ),
    (
        "W  addresses: [10.0.0.1]\n  ready: no\n",
        6,
        "spec.ready",
        "expected true or false",
    ),
    (
        "W  addresses: [10.0.0.1]\n  Ready: false\n",
        6,
        "spec.Ready",
        "is no field here; expected one of",
    ),
    (
        "W  addresses: [10.0.0.1]\n  ports: [{port: 80, tls: true}]\n",
        6,
        "spec.ports[0].tls",
        "is no field here",
    ),
    (
        "W  addresses: [10.0.0.1]\n  ports: [{port: 80}, {port: 80}]\n",
        6,
        "spec.ports[1].port",
        "second time",
    ),
    (
        "W  addresses: [10.0.0.1]\n  ports: [{name: a, port: 80}, {name: a, port: 81}]\n",
        6,
        "spec.ports[1].name",
        "second",
    ),
    (
        "W  addresses: [10.0.0.1]\n  joinTokenSha256: abc\n",
        6,
        "spec.joinTokenSha256",
        "64 hex digits",
    ),
    (
        "W  addresses: [10.0.0.1]\n  joinTokenSha256: 1234567890123456789012345678901234567890123456789012345678901234\n",
        6,
        "spec.joinTokenSha256",
        "is not a SHA-256 of 64 hex digits, as `portunus token` prints it, in quotes",
    ),
    (
        "W  addresses: [10.0.0.1]\n  joinTokenSha256: zf86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n",
        6,
        "spec.joinTokenSha256",
        "64 hex digits",
    ),
    (
        "W  addresses: [10.0.0.1]\n  joinTokenSha256: 9F86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n",
        6,
        "spec.joinTokenSha256",
        "another Workload",
    ),
    // InboundPolicy.
    ("I  mtls: strict\n", 5, "spec.mtls", "a map"),
    (
        "I  mtls: {mode: STRICT}\n",
        5,
        "spec.mtls.mode",
        "strict, permissive, disabled",
    ),
    (
        "I  mtls: {mod: strict}\n",
        5,
        "spec.mtls.mod",
        "expected one of mode, ports",
    ),
    (
        "I  mtls:\n    ports:\n    - mode: strict\n",
        7,
        "spec.mtls.ports[0].port",
        "is missing",
    ),
    (
        "I  mtls:\n    ports:\n    - port: 1\n",
        7,
        "spec.mtls.ports[0].mode",
        "is missing",
    ),
    (
        "I  mtls:\n    ports:\n    - {port: 1, mode: off}\n",
        7,
        "spec.mtls.ports[0].mode",
        "strict, permissive",
    ),
    (
        "I  mtls: {ports: [{port: 1, mode: strict}, {port: 1, mode: strict}]}\n",
        5,
        "spec.mtls.ports[1].port",
        "second",
    ),
    (
        "I  mtls: {mode: strict}\n  selector: {app: a}\n",
        6,
        "spec.selector.app",
        "is no field here",
    ),
    (
        "I  mtls: {mode: strict}\n  rules: []\n",
        6,
        "spec.rules",
        "not understood by this version",
    ),
    (
        "I  mtls: {mode: strict}\n  edge: {grpcWeb: true}\n",
        6,
        "spec.edge",
        "does not serve gRPC-Web",
    ),
    (
        "I  mtls: {mode: disabled}\n",
        5,
        "spec.mtls.mode",
        "contradicts InboundPolicy shop/all",
    ),
    (
        "I  mtls: {ports: [{port: 9090, mode: strict}]}\n",
        5,
        "spec.mtls.ports",
        "contradicts InboundPolicy shop/all",
    ),
    // OutboundPolicy.
    ("O  balancer: {}\n", 5, "spec.targetRefs", "is missing"),
    (
        "O  targetRefs: [{name: greeter}]\n",
        5,
        "spec.targetRefs[0].kind",
        "is missing",
    ),
    (
        "O  targetRefs: [{kind: Pod, name: greeter}]\n",
        5,
        "spec.targetRefs[0].kind",
        "one of Service",
    ),
    (
        "O  targetRefs: [{kind: Service}]\n",
        5,
        "spec.targetRefs[0].name",
        "is missing",
    ),
    (
        "O  targetRefs: [{kind: Service, name: nobody}]\n",
        5,
        "spec.targetRefs[0].name",
        "no Service shop/nobody",
    ),
    (
        "O  targetRefs: [{kind: Service, name: greeter, sectionName: http}]\n",
        5,
        "spec.targetRefs[0].sectionName",
        "no port called",
    ),
    (
        "O  targetRefs: [{kind: Service, name: greeter}, {kind: Service, name: greeter}]\n",
        5,
        "spec.targetRefs[1]",
        "second time",
    ),
    ("O  hosts: ['a b']\n", 5, "spec.hosts[0]", "host's name"),
    ("O  hosts: ['a.example:80']\n", 5, "spec.hosts[0]", "host's name"),
    ("O  hosts: [10.0.0.1]\n", 5, "spec.hosts[0]", "host's name"),
    ("O  hosts: [a.example, A.example.]\n", 5, "spec.hosts[1]", "second time"),
    (
        "O  hosts: [a.example]\n  balancer: {algorithm: Random}\n",
        6,
        "spec.balancer.algorithm",
        "P2cEwma, RoundRobin",
    ),
    (
        "O  hosts: [a.example]\n  balancer: {slowStart: 10}\n",
        6,
        "spec.balancer.slowStart",
        "such as 500ms",
    ),
    (
        "O  hosts: [a.example]\n  balancer: {slowStart: 1.5s}\n",
        6,
        "spec.balancer.slowStart",
        "such as 500ms",
    ),
    (
        "O  hosts: [a.example]\n  healthCheck: {mode: check}\n",
        6,
        "spec.healthCheck.mode",
        "Check, Watch, Off",
    ),
    (
        "O  hosts: [a.example]\n  healthCheck: {interval: 0s}\n",
        6,
        "spec.healthCheck.interval",
        "from 100ms to 24h",
    ),
    (
        "O  hosts: [a.example]\n  healthCheck: {timeout: 25h}\n",
        6,
        "spec.healthCheck.timeout",
        "from 100ms to 24h",
    ),
    (
        "O  hosts: [a.example]\n  healthCheck: {unhealthyThreshold: 0}\n",
        6,
        "spec.healthCheck.unhealthyThreshold",
        "from 1",
    ),
    (
        "O  hosts: [a.example]\n  healthCheck: {healthyThreshold: -1}\n",
        6,
        "spec.healthCheck.healthyThreshold",
        "from 1",
    ),
    (
        "O  hosts: [a.example]\n  outlier: {maxEjectionPercent: 101}\n",
        6,
        "spec.outlier.maxEjectionPercent",
        "to 100",
    ),
    (
        "O  hosts: [a.example]\n  outlier: {consecutiveFailures: 0}\n",
        6,
        "spec.outlier.consecutiveFailures",
        "from 1",
    ),
    (
        "O  hosts: [a.example]\n  outlier: {mode: Maybe}\n",
        6,
        "spec.outlier.mode",
        "On, Off",
    ),
    (
        "O  hosts: [a.example]\n  outlier: {baseEjection: 1m, maxEjection: 1s}\n",
        6,
        "spec.outlier",
        "shorter than baseEjection",
    ),
    (
        "O  hosts: [a.example]\n  retry: {}\n",
        6,
        "spec.retry",
        "not understood by this version",
    ),
    ("O  hosts: [a.example]\n  dns: true\n", 6, "spec.dns", "a map"),
    (
        "O  hosts: [a.example]\n  dns: {srv: true}\n",
        6,
        "spec.dns.srv",
        "expected _grpc._tcp",
    ),
    (
        "O  hosts: [a.example]\n  dns: {srv: '_grpc._tcp.'}\n  edge: {}\n",
        7,
        "spec.edge",
        "is no field here",
    ),
    (
        "O  hosts: [a.example]\n  dns: {srv: '_grpc._tcp..a'}\n",
        6,
        "spec.dns.srv",
        "expected _grpc._tcp",
    ),
    (
        "O  hosts: [a.example]\n  dns: {ttl: 5s}\n",
        6,
        "spec.dns.ttl",
        "expected one of srv",
    ),
    ("O  hosts: [a.example]\nextra: 1\n", 6, "extra", "is no field here"),
    (
        "O  hosts: [a.example]\n  from: [shop/caller]\n",
        6,
        "spec.from",
        "is no field here",
    ),
];

/// The first letter of a text stands for the lines before its `spec`.
pub(crate) fn whole(text: &str) -> String {
    let head = |version: &str, kind: &str, rest: &str| {
        format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: bad, namespace: shop}}\nspec:\n{rest}")
    };
    let ours = "portunus.dev/v1alpha1";
    match text.split_at(1) {
        ("S", rest) => head("v1", "Service", rest),
        ("W", rest) => head(ours, "Workload", rest),
        ("I", rest) => head(ours, "InboundPolicy", rest),
        ("O", rest) => head(ours, "OutboundPolicy", rest),
        _ => text.to_owned(),
    }
}
