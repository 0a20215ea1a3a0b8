//! Installs the pod's redirect rules: one nftables transaction by netlink, without any binary.
