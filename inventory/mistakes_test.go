package inventory

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Each case changes rack.yaml and must give exactly these problems.
func TestEveryMistakeIsNamedWithItsLineAndCure(t *testing.T) {
	tests := []struct {
		name     string
		old, new string // old "" appends a document
		want     []string
	}{
		{"misspelt field", "  gateway: 10.20.0.1", "  gatewy: 10.20.0.1", []string{
			`rack.yaml:10: spec.gatewy: unknown field; did you mean "gateway"?`,
		}},
		{"far unknown field", "  gateway: 10.20.0.1", "  colour: green", []string{
			"rack.yaml:10: spec.colour: unknown field; want one of subnet, dhcp, unknown, pool, gateway, routes, dns, leaseTime, force, listen, vlan",
		}},
		{"misspelt kind", "kind: Group", "kind: Gruop", []string{
			`rack.yaml:45: kind: unknown kind "Gruop"; did you mean "Group"?`,
		}},
		{"missing kind", "kind: Group\n", "", []string{
			"rack.yaml:44: kind: missing; want one of Network, Image, Definition, Group, Model, Machine",
		}},
		{"wrong version", "apiVersion: recast/v1\nkind: Image", "apiVersion: recast/v2\nkind: Image", []string{
			`rack.yaml:13: apiVersion: unknown value "recast/v2"; did you mean "recast/v1"?`,
		}},
		{"missing spec", "", "apiVersion: recast/v1\nkind: Image\nmetadata: {name: x}\n", []string{
			"rack.yaml:71: spec: missing; add it",
		}},
		{"a list for a document", "", "- a\n", []string{
			"rack.yaml:71: want a document with apiVersion, kind, metadata and spec, found a list",
		}},
		{"syntax error costs one document only", "  gateway: 10.20.0.1", "  gateway: [10.20.0.1\n  colour: green", []string{
			"rack.yaml:10: not valid YAML: did not find expected ',' or ']'; check indentation and quotes near this line",
		}},
		{"wrong type", "  attempts: 3", "  attempts: three", []string{
			`rack.yaml:42: spec.attempts: want a whole number, found "three"`,
		}},
		{"fraction for a number", "  attempts: 3", "  attempts: 2.5", []string{
			"rack.yaml:42: spec.attempts: want a whole number, found the number 2.5",
		}},
		{"too many attempts", "  attempts: 3", "  attempts: 0", []string{
			"rack.yaml:42: spec.attempts: 0 attempts; want 1 to 20",
		}},
		{"number for text", "metadata: {name: rack1}", "metadata: {name: 12}", []string{
			`rack.yaml:4: metadata.name: want text, found the number 12; put it in quotes: "12"`,
		}},
		{"nothing for a value", "  gateway: 10.20.0.1", "  gateway:", []string{
			"rack.yaml:10: spec.gateway: want text, found nothing; give it a value or remove it",
		}},
		{"mapping for text", "  gateway: 10.20.0.1", "  gateway: {a: b}", []string{
			"rack.yaml:10: spec.gateway: want text, found a mapping",
		}},
		{"text for a list", "  dns: [10.20.0.1]", "  dns: 10.20.0.1", []string{
			`rack.yaml:11: spec.dns: want a list, found "10.20.0.1"`,
		}},
		{"boolean in quotes", "  protected: true", `  protected: "yes"`, []string{
			`rack.yaml:69: spec.protected: want true or false, found "yes"`,
		}},
		{"field twice", "  gateway: 10.20.0.1", "  gateway: 10.20.0.1\n  gateway: 10.20.0.2", []string{
			"rack.yaml:11: spec.gateway: given twice, first on line 10; remove one",
		}},
		{"anchor", "  subnet: 10.20.0.0/24", "  subnet: &a 10.20.0.0/24", []string{
			`rack.yaml:6: spec.subnet: the anchor "&a" is not read; write the value out where it is needed`,
		}},
		{"alias", "  dns: [10.20.0.1]", "  dns: *a", []string{
			"rack.yaml:11: not valid YAML: unknown anchor 'a' referenced; aliases are not read, write the value out",
		}},
		{"merge key", "  dns: [10.20.0.1]", "  <<: {dns: [10.20.0.1]}", []string{
			"rack.yaml:11: spec.<<: merge keys are not read; write the fields out",
		}},
		{"bad name", "metadata: {name: rack1-compute}", "metadata: {name: Rack1_compute}", []string{
			`rack.yaml:46: metadata.name: bad name "Rack1_compute": want lower-case letters, digits and '-', beginning and ending with a letter or digit`,
		}},
		{"long name", "metadata: {name: rack1-compute}", "metadata: {name: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa}", []string{
			"rack.yaml:46: metadata.name: the name has 64 characters, at most 63 are allowed",
		}},
		{"labels on a Group", "metadata: {name: rack1-compute}", "metadata: {name: rack1-compute, labels: {a: b}}", []string{
			"rack.yaml:46: metadata.labels: only a Machine has labels; remove them",
		}},
		{"duplicate name", "metadata: {name: r1u06,", "metadata: {name: r1u05,", []string{
			`rack.yaml:62: metadata.name: the Machine "r1u05" is declared twice, first at rack.yaml:54; rename or remove one`,
		}},
		{"duplicate MAC", "52:54:00:00:00:06", "52-54-00-00-00-05", []string{
			`rack.yaml:65: spec.nics[0].mac: the hardware address 52:54:00:00:00:05 is declared twice, first by machine "r1u05" at rack.yaml:57; correct one of them`,
		}},
		{"duplicate address", "network: rack1}]", "network: rack1, ip: 10.20.0.15}]", []string{
			`rack.yaml:65: spec.nics[0].ip: the address 10.20.0.15 is declared twice, first by machine "r1u05" at rack.yaml:57; correct one of them`,
		}},
		{"duplicate BMC", `"ipmi://10.30.0.16"`, `"redfish://10.30.0.15:443/"`, []string{
			`rack.yaml:66: spec.bmc.url: the BMC "redfish://10.30.0.15:443/" is declared twice, first by machine "r1u05" at rack.yaml:58; correct one of them, or name the system each one is`,
			"rack.yaml:66: spec.bmc.cipherSuite: Redfish has no cipher suite; remove it",
		}},
		{"duplicate uuid and serial", "spec:\n  location: {site: ams, rack: r1, unit: 5}", "spec:\n  uuid: 4c4c4544-0042-3510-8052-b4c04f4a4e31\n  serial: CZ1234/567\n  location: {site: ams, rack: r1, unit: 5}", []string{
			`rack.yaml:69: spec.serial: the serial CZ1234/567 is declared twice, first by machine "r1u05" at rack.yaml:57; correct one of them`,
			`rack.yaml:70: spec.uuid: the uuid 4c4c4544-0042-3510-8052-b4c04f4a4e31 is declared twice, first by machine "r1u05" at rack.yaml:56; correct one of them`,
		}},
		{"multicast MAC", "52:54:00:00:00:06", "01:00:5e:00:00:06", []string{
			`rack.yaml:65: spec.nics[0].mac: "01:00:5e:00:00:06" is not the address of one Ethernet interface; want six pairs of hex digits such as 52:54:00:00:00:05, as the machine shows it`,
		}},
		{"bad MAC", "52:54:00:00:00:06", "52:54:00:00:06", []string{
			`rack.yaml:65: spec.nics[0].mac: parse hardware address "52:54:00:00:06": want six pairs of hex digits such as 52:54:00:00:00:05`,
		}},
		{"no interface", `nics: [{mac: "52:54:00:00:00:06", network: rack1}]`, "nics: []", []string{
			"rack.yaml:62: spec.nics: a machine without a network interface cannot boot from the network; add the one it boots from",
		}},
		{"address outside its Network", "10.20.0.15", "10.21.0.15", []string{
			`rack.yaml:57: spec.nics[0].ip: the address 10.21.0.15 is outside the subnet 10.20.0.0/24 of network "rack1"; want one from 10.20.0.1 to 10.20.0.254`,
		}},
		{"address inside the pool", "10.20.0.15", "10.20.0.150", []string{
			`rack.yaml:57: spec.nics[0].ip: the address 10.20.0.150 lies in the pool 10.20.0.100-10.20.0.199 of network "rack1", which is for undeclared machines; choose one outside it`,
		}},
		{"address of the gateway", "10.20.0.15", "10.20.0.1", []string{
			`rack.yaml:57: spec.nics[0].ip: 10.20.0.1 is the gateway of network "rack1"; choose another address`,
		}},
		{"broadcast address", "10.20.0.15", "10.20.0.255", []string{
			`rack.yaml:57: spec.nics[0].ip: 10.20.0.255 is the broadcast address of 10.20.0.0/24 of network "rack1"; want one from 10.20.0.1 to 10.20.0.254`,
		}},
		{"address of the subnet", "10.20.0.15", "10.20.0.0", []string{
			`rack.yaml:57: spec.nics[0].ip: 10.20.0.0 is the address of the subnet 10.20.0.0/24 itself of network "rack1"; want one from 10.20.0.1 to 10.20.0.254`,
		}},
		{"IPv6 address", "10.20.0.15", `"fd00::15"`, []string{
			`rack.yaml:57: spec.nics[0].ip: parse address "fd00::15": want an IPv4 address such as 10.20.0.15`,
		}},
		{"address without network", "network: rack1, ip: 10.20.0.15", "ip: 10.20.0.15", []string{
			"rack.yaml:57: spec.nics[0].network: the address 10.20.0.15 is on no network; name the Network it lies in",
		}},
		{"unknown network", "network: rack1}]", "network: rack2}]", []string{
			`rack.yaml:65: spec.nics[0].network: there is no Network "rack2"; did you mean "rack1"?`,
		}},
		{"interface that never gets an address", "  pool: 10.20.0.100-10.20.0.199\n", "", []string{
			"rack.yaml:8: spec.unknown: unknown: discover needs addresses for undeclared machines; add a pool",
			`rack.yaml:64: spec.nics[0].ip: network "rack1" has no pool, so this interface would never get an address; give it an ip, or the Network a pool`,
		}},
		{"overlapping subnets", "", "apiVersion: recast/v1\nkind: Network\nmetadata: {name: wide}\nspec: {subnet: 10.16.0.0/12, dhcp: off}\n", []string{
			`rack.yaml:6: spec.subnet: 10.20.0.0/24 overlaps 10.16.0.0/12 of network "wide" at rack.yaml:73; give each Network its own subnet`,
		}},
		{"bits behind the mask", "10.20.0.0/24", "10.20.0.5/24", []string{
			`rack.yaml:6: spec.subnet: subnet "10.20.0.5/24" has bits set behind the mask: write 10.20.0.0/24`,
		}},
		{"subnet of no hosts", "subnet: 10.20.0.0/24", "subnet: 224.0.0.0/24", []string{
			`rack.yaml:6: spec.subnet: parse subnet "224.0.0.0/24": want a subnet such as 10.20.0.0/24 or 2001:db8:20::/64`,
		}},
		{"subnet without mask", "10.20.0.0/24", "10.20.0.0", []string{
			`rack.yaml:6: spec.subnet: parse subnet "10.20.0.0": want a subnet such as 10.20.0.0/24 or 2001:db8:20::/64`,
		}},
		{"pool outside the subnet", "10.20.0.199", "10.20.1.9", []string{
			"rack.yaml:9: spec.pool: the address 10.20.1.9 is outside the subnet 10.20.0.0/24; want one from 10.20.0.1 to 10.20.0.254",
		}},
		{"pool backwards", "10.20.0.100-10.20.0.199", "10.20.0.199-10.20.0.100", []string{
			`rack.yaml:9: spec.pool: range "10.20.0.199-10.20.0.100" ends before it begins`,
		}},
		{"pool holds the gateway", "10.20.0.100-", "10.20.0.1-", []string{
			"rack.yaml:9: spec.pool: the gateway 10.20.0.1 lies in the pool 10.20.0.1-10.20.0.199; shrink the pool",
		}},
		{"pool without dhcp", "dhcp: authoritative", "dhcp: proxy", []string{
			"rack.yaml:9: spec.pool: with dhcp: proxy recast gives no addresses; remove it or set dhcp: authoritative",
		}},
		{"no default for dhcp", "  dhcp: authoritative\n", "", []string{
			"rack.yaml:6: spec.dhcp: missing; want one of authoritative, proxy, off",
		}},
		{"lease too short", "  dns: [10.20.0.1]", "  dns: [10.20.0.1]\n  leaseTime: 5s", []string{
			`rack.yaml:12: spec.leaseTime: duration "5s" is too short: at least 2m0s`,
		}},
		{"VLAN out of range", "  dns: [10.20.0.1]", "  dns: [10.20.0.1]\n  vlan: 4095", []string{
			`rack.yaml:12: spec.vlan: 4095 is no VLAN; want 1 to 4094, or leave it out where machines send frames without a tag`,
		}},
		{"routes that lead nowhere", "  dns: [10.20.0.1]", `  routes:
  - {to: 10.30.0.0/16, via: 10.21.0.1}
  - {to: 10.30.0.1/16, via: 10.20.0.1}
  - {to: 10.30.0.0, via: 10.20.0.1}
  - {to: "2001:db8::/64", via: 10.20.0.1}
  - {to: 0.0.0.0/0, via: 10.20.0.1}
  - {to: 10.20.0.128/25, via: 10.20.0.1}
  - {to: 10.40.0.0/16, via: 10.20.0.1}
  - {to: 10.40.0.0/16, via: 10.20.0.2}
  - {to: 10.50.0.0/16, via: 10.20.0.255}
  - {to: 10.60.0.0/16, via: 2001:db8::1}
  - {to: 10.70.0.0/16}`, []string{
			`rack.yaml:12: spec.routes[0].via: the address 10.21.0.1 is outside the subnet 10.20.0.0/24; want one from 10.20.0.1 to 10.20.0.254`,
			`rack.yaml:13: spec.routes[1].to: 10.30.0.1/16 has bits set behind the mask; write 10.30.0.0/16`,
			`rack.yaml:14: spec.routes[2].to: "10.30.0.0" is not a subnet; want one such as 10.30.0.0/16`,
			`rack.yaml:15: spec.routes[3].to: "2001:db8::/64" is not a subnet; want one such as 10.30.0.0/16`,
			`rack.yaml:16: spec.routes[4].to: that is the default route; name its router as gateway`,
			`rack.yaml:17: spec.routes[5].to: 10.20.0.128/25 lies in the subnet 10.20.0.0/24 itself; remove it: no router is needed`,
			`rack.yaml:19: spec.routes[7].to: a second route to 10.40.0.0/16; remove one`,
			`rack.yaml:20: spec.routes[8].via: 10.20.0.255 is the broadcast address of 10.20.0.0/24; want one from 10.20.0.1 to 10.20.0.254`,
			`rack.yaml:21: spec.routes[9].via: parse address "2001:db8::1": want an IPv4 address such as 10.20.0.15`,
			`rack.yaml:22: spec.routes[10].via: missing; add it, such as 10.20.0.254`,
		}},
		{"more routes than fit", "  dns: [10.20.0.1]", "  routes:" + strings.Repeat("\n  - {to: 10.30.0.0/16, via: 10.20.0.1}", 17), []string{
			`rack.yaml:28: spec.routes: 17 routes are more than fit a DHCP reply; want at most 16: put subnets together, or leave the rest to the gateway`,
		}},
		{"router in the pool", "  dns: [10.20.0.1]", "  routes: [{to: 10.30.0.0/16, via: 10.20.0.150}]", []string{
			`rack.yaml:9: spec.pool: a router of its routes lies in the pool 10.20.0.100-10.20.0.199; shrink the pool`,
		}},
		{"missing digest", "  digest: \"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"\n", "", []string{
			`rack.yaml:17: spec.digest: missing; add it, such as "sha256:…" as recast image add prints it`,
		}},
		{"malformed digest", "sha256:e3b0c4", "sha256:e3b0", []string{
			`rack.yaml:19: spec.digest: parse digest "sha256:e3b04298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855": want 64 hex digits after "sha256:"`,
		}},
		{"digest of another kind", "sha256:e3b0c4", "md5:e3b0c4", []string{
			`rack.yaml:19: spec.digest: parse digest "md5:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855": it does not start with "sha256:"`,
		}},
		{"kernel image", "type: disk", "type: kernel", []string{
			"rack.yaml:17: spec.type: kernel images are not accepted yet; want disk",
		}},
		{"source that is not fetched", "https://images.example/debian-12.raw.zst", "oci://registry.example/os/debian:12", []string{
			"rack.yaml:20: spec.source: sources by oci:// are not accepted yet; want a file path or an https URL, or leave it out and use recast image add",
		}},
		{"source without TLS", "https://images.example", "http://images.example", []string{
			"rack.yaml:20: spec.source: sources by http:// are not accepted yet; want a file path or an https URL, or leave it out and use recast image add",
		}},
		{"password in a source", "https://images.example", "https://me:secret@images.example", []string{
			"rack.yaml:20: spec.source: the source holds a user or password, which would be shown in plans and logs; want a file path or an https URL, or leave it out and use recast image add",
		}},
		{"unknown image", "image: debian-12", "image: debian-13", []string{
			`rack.yaml:26: spec.image: there is no Image "debian-13"; did you mean "debian-12"?`,
		}},
		{"arch that does not fit", "arch: amd64", "arch: arm64", []string{
			`rack.yaml:54: spec.arch: machine "r1u05" is amd64, image "debian-12" of definition "compute" is arm64; put it in a group whose image fits`,
			`rack.yaml:62: spec.arch: machine "r1u06" is amd64, image "debian-12" of definition "compute" is arm64; put it in a group whose image fits`,
		}},
		{"a restore that keeps nobody knows what", "every: disk", "every: restore, onMismatch: hold, repairLimit: 1MiB", []string{
			"rack.yaml:27: spec.boot.onMismatch: every: restore puts back whatever differs; remove it, or set every: gate",
			"rack.yaml:27: spec.boot.repairLimit: every: restore puts back whatever differs; remove it, or set every: gate",
			`rack.yaml:27: spec.boot.every: image "debian-12" does not say what is kept: all else is put back at every boot; name the partitions that are kept in its state, or set state: [] to keep none`,
		}},
		{"state that never changes", "type: disk", "type: disk\n  immutable: [esp, usr]\n  state: [home, usr]", []string{
			`rack.yaml:19: spec.state[1]: "usr" never changes, as immutable says; remove one`,
		}},
		{"a gate without anything to prove", "every: disk", "every: gate", []string{
			`rack.yaml:27: spec.boot.every: image "debian-12" names no immutable partition, so that there is nothing to prove; name those that never change in its immutable, or want disk`,
		}},
		{"a gate's words without a gate", "every: disk", "every: disk, onMismatch: repair, repairLimit: 1MiB, handover: reboot, onServerDown: lastGood", []string{
			"rack.yaml:27: spec.boot.onMismatch: it says what a gate does, and there is none; remove it, or set every: gate",
			"rack.yaml:27: spec.boot.repairLimit: it says what a gate does, and there is none; remove it, or set every: gate",
			"rack.yaml:27: spec.boot.handover: it says what a gate does, and there is none; remove it, or set every: gate",
			"rack.yaml:27: spec.boot.onServerDown: it says what a gate does, and there is none; remove it, or set every: gate",
		}},
		{"immutable twice", "type: disk", "type: disk\n  immutable: [esp, 2, esp]", []string{
			`rack.yaml:18: spec.immutable[2]: "esp" stands there twice; remove one`,
		}},
		{"immutable without a name", "type: disk", "type: disk\n  immutable: [\"\"]", []string{
			`rack.yaml:18: spec.immutable[0]: "" cannot name a partition; want its GPT name, at most 36 characters, or its number`,
		}},
		{"verity that contradicts itself", "type: disk", "type: disk\n  immutable: [esp, usr, usr-verity]\n  state: [home]\n  verity:\n    usr: root-verity\n    root: usr-verity\n    home: home-verity\n    a: tree\n    b: tree\n    tree: c\n    \"\": d\n    e: \"\"", []string{
			`rack.yaml:21: spec.verity.usr: "usr" is immutable too, so that all of it would be read; remove one: its tree proves it`,
			`rack.yaml:22: spec.verity.root: "usr-verity" stands in immutable too; remove it there: a tree is read whole`,
			`rack.yaml:23: spec.verity.home: what dm-verity protects is no state; remove it there or here`,
			`rack.yaml:24: spec.verity.a: "tree" is the tree of "b" too; name another one: each has its own`,
			`rack.yaml:26: spec.verity.tree: "tree" is the tree of "b"; name the partition that holds the data, and behind it that of its tree`,
			`rack.yaml:27: spec.verity.: "" cannot name a partition; want its GPT name, at most 36 characters, or its number`,
			`rack.yaml:28: spec.verity.e: "" cannot name a partition; want its GPT name, at most 36 characters, or its number`,
		}},
		{"kernelArgs on a disk image", "  boot: {every: disk}", "  kernelArgs: [quiet]", []string{
			"rack.yaml:27: spec.kernelArgs: the boot loader of a disk image owns the kernel's arguments; remove it and set them in the image, and in its boot.args for a gate that starts it by kexec",
		}},
		{"evidence that is old at once", "{minimum: reported}", "{minimum: reported, maxAge: 1s}", []string{
			`rack.yaml:39: spec.evidence.maxAge: duration "1s" is too short: at least 1m0s`,
		}},
		{"evidence the image cannot give", "minimum: reported", "minimum: enforced", []string{
			"rack.yaml:39: spec.evidence.minimum: nothing keeps a machine that does not reach recast from starting its disk unproved, so that nothing is enforced; set boot: {every: gate, onServerDown: refuse}, or want reported, read-back, or measured",
		}},
		{"misspelt evidence", "minimum: reported", "minimum: reportd", []string{
			`rack.yaml:39: spec.evidence.minimum: unknown value "reportd"; did you mean "reported"?`,
		}},
		{"bare size", "minSize: 8GiB", `minSize: "8"`, []string{
			`rack.yaml:28: spec.disk.select.minSize: parse size "8": the unit is missing, such as 8GiB`,
		}},
		{"number as size", "minSize: 8GiB", "minSize: 8", []string{
			`rack.yaml:28: spec.disk.select.minSize: want text, found the number 8; write the unit: 8GiB`,
		}},
		{"fraction as size", "minSize: 8GiB", "minSize: 1.5", []string{
			`rack.yaml:28: spec.disk.select.minSize: want text, found the number 1.5; write the unit: 1.5GiB`,
		}},
		{"number as deadline", "deadline: 20m", "deadline: 20", []string{
			`rack.yaml:40: spec.health.deadline: want text, found the number 20; write the unit: 20m`,
		}},
		{"number as lease time", "  dns: [10.20.0.1]", "  dns: [10.20.0.1]\n  leaseTime: 60", []string{
			`rack.yaml:12: spec.leaseTime: want text, found the number 60; write the unit: 60m`,
		}},
		{"unknown unit", "minSize: 8GiB", "minSize: 8Gib", []string{
			`rack.yaml:28: spec.disk.select.minSize: parse size "8Gib": unknown unit "Gib", want KiB, MiB, GiB, TiB, PiB, kB, MB, GB, TB, PB or B`,
		}},
		{"sizes that exclude each other", "minSize: 8GiB", "minSize: 8GiB, maxSize: 4GiB", []string{
			"rack.yaml:28: spec.disk.select.maxSize: no disk is at least 8GiB and at most 4GiB; swap or remove one",
		}},
		{"size hint that contradicts", "minSize: 8GiB", `minSize: 8GiB, size: "< 8"`, []string{
			`rack.yaml:28: spec.disk.select.size: no disk has a size "< 8" GiB and fits minSize or maxSize (8GiB); use one or the other`,
		}},
		{"number operator on text", "rotational: false", `model: "== abc"`, []string{
			`rack.yaml:28: spec.disk.select.model: model is "== abc": "==" compares numbers, want s==, s!=, s<, s<=, s>, s>=, <in>, <all-in> or <or>`,
		}},
		{"text operator on size", "rotational: false", `size: "<in> 10"`, []string{
			`rack.yaml:28: spec.disk.select.size: size is "<in> 10": "<in>" compares text, want =, ==, !=, <, <=, >, >= or <or>`,
		}},
		{"unknown operator", "rotational: false", `model: "<range-in> [1 2]"`, []string{
			`rack.yaml:28: spec.disk.select.model: model is "<range-in> [1 2]": unknown operator "<range-in>", want s==, s!=, s<, s<=, s>, s>=, <in>, <all-in> or <or>`,
		}},
		{"rotational is no boolean", "rotational: false", "rotational: maybe", []string{
			`rack.yaml:28: spec.disk.select.rotational: rotational is "maybe": want true or false, without operator`,
		}},
		{"hint without value", "rotational: false", `serial: "<in>"`, []string{
			`rack.yaml:28: spec.disk.select.serial: serial is "<in>": a value is missing`,
		}},
		{"name that no disk has", "rotational: false", "name: sda", []string{
			`rack.yaml:28: spec.disk.select.name: name is "sda": no disk has that name, want one such as /dev/sda`,
		}},
		{"wwn that contradicts", "rotational: false", `wwn: "0x5000", wwn_with_extension: "0x6000abc"`, []string{
			"rack.yaml:28: spec.disk.select.wwn: no disk has the wwn 0x5000 and the wwn_with_extension 0x6000abc; remove one",
		}},
		{"hint under both names", "rotational: false", "by_path: /dev/disk/by-path/a, byPath: /dev/disk/by-path/a", []string{
			`rack.yaml:28: spec.disk.select.by_path: given twice, as "by_path" and as "byPath"; remove one`,
		}},
		{"unknown hint", "rotational: false", "rotationl: false", []string{
			`rack.yaml:28: spec.disk.select.rotationl: unknown field; did you mean "rotational"?`,
		}},
		{"duration without unit", "deadline: 20m", `deadline: "20"`, []string{
			`rack.yaml:40: spec.health.deadline: parse duration "20": want a number with a unit, such as 90s, 20m or 1h30m`,
		}},
		{"unknown step", "{booting: 15m}", "{boting: 15m}", []string{
			`rack.yaml:41: spec.deadlines.boting: there is no step "boting"; did you mean "booting"?`,
		}},
		{"deadline of starting", "{booting: 15m}", "{starting: 15m}", []string{
			"rack.yaml:41: spec.deadlines.starting: the deadline of starting is health.deadline; move it there",
		}},
		{"userData nobody reads", "    format: cloud-init\n", "", []string{
			"rack.yaml:30: spec.config.format: userData without a format is read by nobody; want cloud-init",
		}},
		{"user data is no YAML", "hostname: ${machine.name}", "hostname: [${machine.name}", []string{
			"rack.yaml:33: spec.config.userData: not valid YAML, which #cloud-config must be: did not find expected ',' or ']'; check indentation and quotes near this line",
		}},
		{"unknown substitution", "hostname: ${machine.name}", "hostname: ${hostname}", []string{
			`rack.yaml:33: spec.config.userData: unknown substitution "${hostname}": want machine.…, nic.N.… or secret.NAME; for a literal "${" write "$${"`,
		}},
		{"unknown field of a machine", "hostname: ${machine.name}", "hostname: ${machine.nam}", []string{
			`rack.yaml:33: spec.config.userData: unknown substitution "${machine.nam}": machine has name, uuid, serial, arch, site, rack, unit and label.KEY; for a literal "${" write "$${"`,
		}},
		{"substitution without end", "hostname: ${machine.name}", "hostname: ${machine.name", []string{
			`rack.yaml:33: spec.config.userData: a substitution "${" has no "}" on its line; for a literal "${" write "$${"`,
		}},
		{"substitution that no machine fills", "hostname: ${machine.name}", "hostname: ${machine.label.host}", []string{
			`rack.yaml:54: metadata.labels.host: definition "compute" cannot be filled in for machine "r1u05": ${machine.label.host} has no value; declare it`,
			`rack.yaml:62: metadata.labels.host: definition "compute" cannot be filled in for machine "r1u06": ${machine.label.host} has no value; declare it`,
		}},
		{"MAC that is a number to YAML", "hostname: ${machine.name}", "mac: ${nic.0.mac}", []string{
			`rack.yaml:54: spec.nics[0].mac: definition "compute" cannot be filled in for machine "r1u05": ${nic.0.mac} gives "52:54:00:00:00:05", which YAML reads as a number there; put the substitution in quotes`,
			`rack.yaml:62: spec.nics[0].mac: definition "compute" cannot be filled in for machine "r1u06": ${nic.0.mac} gives "52:54:00:00:00:06", which YAML reads as a number there; put the substitution in quotes`,
		}},
		{"secret with a bad name", "${secret.join-token}", "${secret.Join_Token}", []string{
			`rack.yaml:38: spec.config.userData: unknown substitution "${secret.Join_Token}": a secret's name has lower-case letters, digits and '-'; for a literal "${" write "$${"`,
		}},
		{"unknown definition", "definition: compute", "definition: compte", []string{
			`rack.yaml:49: spec.definition: there is no Definition "compte"; did you mean "compute"?`,
		}},
		{"Group without Definition", "  definition: compute\n", "", []string{
			"rack.yaml:48: spec.definition: missing; add it",
		}},
		{"Group that selects nothing by form", "  select: {rack: r1, role: compute}", "  select: {}", []string{
			"rack.yaml:46: spec.select: it selects nothing; name at least one label or location field, such as rack: r1",
		}},
		{"value no label can have", "role: compute}\n  definition", "role: \"a b\"}\n  definition", []string{
			`rack.yaml:48: spec.select.role: no machine can have the value "a b"; want letters, digits, '.', '_' and '-', at most 63, beginning and ending with a letter or digit`,
		}},
		{"pinned generation malformed", "  definition: compute", "  definition: compute\n  generation: latest", []string{
			`rack.yaml:50: spec.generation: parse digest "latest": it does not start with "sha256:"`,
		}},
		{"zero unavailable", "maxUnavailable: 25%", "maxUnavailable: 0", []string{
			`rack.yaml:50: spec.rollout.maxUnavailable: "0" would never let a machine start: want at least 1`,
		}},
		{"more than all", "maxUnavailable: 25%", "maxUnavailable: 125%", []string{
			`rack.yaml:50: spec.rollout.maxUnavailable: "125%" is more than all: want at most 100%`,
		}},
		{"negative canary", "canary: 1", "canary: -1", []string{
			"rack.yaml:50: spec.rollout.canary: -1 is negative; want 0 or more",
		}},
		{"machine in two Groups", "", "apiVersion: recast/v1\nkind: Group\nmetadata: {name: all}\nspec: {select: {site: ams}, definition: compute}\n", []string{
			`rack.yaml:54: metadata.labels: machine "r1u05" is in the groups "all" at rack.yaml:73 and "rack1-compute" at rack.yaml:46; make the selectors or its labels differ`,
			`rack.yaml:62: metadata.labels: machine "r1u06" is in the groups "all" at rack.yaml:73 and "rack1-compute" at rack.yaml:46; make the selectors or its labels differ`,
		}},
		{"label against location", "labels: {rack: r1, role: compute}}", "labels: {rack: r2, role: compute}}", []string{
			`rack.yaml:54: metadata.labels.rack: the label says "r2", spec.location.rack says "r1"; make them equal or remove one`,
		}},
		{"BMC scheme", "redfish://10.30.0.15", "https://10.30.0.15", []string{
			`rack.yaml:58: spec.bmc.url: url scheme "https" is not known: want redfish or ipmi`,
		}},
		{"password in a BMC url", "redfish://10.30.0.15", "redfish://root:pw@10.30.0.15", []string{
			"rack.yaml:58: spec.bmc.url: the url holds a user: name a secret in credentials instead",
		}},
		{"BMC without credentials", ", credentials: rack1-bmc}", "}", []string{
			"rack.yaml:58: spec.bmc.credentials: missing; add it",
		}},
		{"ipmi with a path", "ipmi://10.30.0.16", "ipmi://10.30.0.16/systems/1", []string{
			`rack.yaml:66: spec.bmc.url: url "ipmi://10.30.0.16/systems/1": an ipmi url is only ipmi://host[:port]`,
		}},
		{"weak cipher suite", "cipherSuite: 3", "cipherSuite: 0", []string{
			"rack.yaml:66: spec.bmc.cipherSuite: cipher suite 0 is not accepted; want 17, or 3 where the BMC knows nothing better",
		}},
		{"cipher suite on Redfish", "credentials: rack1-bmc}", "credentials: rack1-bmc, cipherSuite: 17}", []string{
			"rack.yaml:58: spec.bmc.cipherSuite: Redfish has no cipher suite; remove it",
		}},
		{"host key that is none", "credentials: rack1-bmc}", `credentials: rack1-bmc, hostKey: "SHA256:short"}`, []string{
			`rack.yaml:58: spec.bmc.hostKey: "SHA256:short" is not the fingerprint of a host key; want SHA256: and 43 characters, as ssh-keyscan HOST | ssh-keygen -lf - shows it`,
		}},
		{"host key on IPMI", "cipherSuite: 3", `hostKey: "SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8"`, []string{
			"rack.yaml:66: spec.bmc.hostKey: a BMC by IPMI has its console there, not by SSH; remove it",
		}},
		{"pin on IPMI", "cipherSuite: 3", `pin: "sha256:0000000000000000000000000000000000000000000000000000000000000000"`, []string{
			"rack.yaml:66: spec.bmc.pin: IPMI has no certificate to pin; remove it",
		}},
		{"BMC's mac without its ip", "rack1-bmc, cipherSuite: 3", `rack1-bmc, mac: "52:54:00:00:01:06"`, []string{
			"rack.yaml:66: spec.bmc.ip: a hardware address alone reserves nothing; give its ip too, or remove mac",
		}},
		{"BMC's ip without its mac", "rack1-bmc, cipherSuite: 3", `rack1-bmc, ip: 10.20.0.66`, []string{
			"rack.yaml:66: spec.bmc.mac: an address is reserved for a hardware address; give its mac too, or remove ip",
		}},
		{"BMC's mac is another machine's", "rack1-bmc, cipherSuite: 3", `rack1-bmc, mac: "52:54:00:00:00:05", ip: 10.20.0.66`, []string{
			`rack.yaml:66: spec.bmc.mac: the hardware address 52:54:00:00:00:05 is declared twice, first by machine "r1u05" at rack.yaml:57; correct one of them`,
		}},
		{"BMC's mac is a multicast one", "rack1-bmc, cipherSuite: 3", `rack1-bmc, mac: "53:54:00:00:00:05", ip: 10.20.0.66`, []string{
			`rack.yaml:66: spec.bmc.mac: "53:54:00:00:00:05" is not the address of one Ethernet interface; want six pairs of hex digits such as 52:54:00:00:00:05, as its label shows it`,
		}},
		{"BMC's ip is a machine's", "rack1-bmc, cipherSuite: 3", `rack1-bmc, mac: "52:54:00:00:01:06", ip: 10.20.0.15`, []string{
			`rack.yaml:66: spec.bmc.ip: the address 10.20.0.15 is declared twice, first by machine "r1u05" at rack.yaml:57; correct one of them`,
		}},
		{"BMC's ip on no network", "rack1-bmc, cipherSuite: 3", `rack1-bmc, mac: "52:54:00:00:01:06", ip: 10.30.0.16`, []string{
			`rack.yaml:66: spec.bmc.ip: the address 10.30.0.16 is on no declared network; declare its Network with dhcp: authoritative`,
		}},
		{"BMC's ip in the pool", "rack1-bmc, cipherSuite: 3", `rack1-bmc, mac: "52:54:00:00:01:06", ip: 10.20.0.150`, []string{
			`rack.yaml:66: spec.bmc.ip: the address 10.20.0.150 lies in the pool 10.20.0.100-10.20.0.199 of network "rack1", which is for undeclared machines; choose one outside it`,
		}},
		{"BMC's url beside its reservation", `ipmi://10.30.0.16", credentials: rack1-bmc`, `ipmi://10.20.0.66", credentials: rack1-bmc, mac: "52:54:00:00:01:06", ip: 10.20.0.67`, []string{
			`rack.yaml:66: spec.bmc.ip: the url says 10.20.0.66, the reservation 10.20.0.67; make them equal`,
		}},
		{"bad uuid", "4C4C4544-", "4C4C454-", []string{
			`rack.yaml:68: spec.uuid: bad uuid "4C4C454-0042-3510-8052-B4C04F4A4E31"; want 8-4-4-4-12 hex digits as dmidecode -s system-uuid prints it`,
		}},
		{"unit zero", "unit: 5", "unit: 0", []string{
			"rack.yaml:56: spec.location.unit: there is no unit 0; want 1 to 999",
		}},
		{"force of the wrong type", "  gateway: 10.20.0.1", "  gateway: 10.20.0.1\n  force: 1", []string{
			"rack.yaml:11: spec.force: want true or false, found the number 1",
		}},
		{"several at once", "  dhcp: authoritative\n  unknown: discover", "  dhcp: authoritativ\n  unknwon: discover", []string{
			`rack.yaml:7: spec.dhcp: unknown value "authoritativ"; did you mean "authoritative"?`,
			`rack.yaml:8: spec.unknwon: unknown field; did you mean "unknown"?`,
		}},
		{"selector that lost a part", "select: {rack: r1, role: compute}", "select: {rack: r1, role: [compute]}", []string{
			"rack.yaml:48: spec.select.role: want text, found a list",
		}},
		{"selector with a bad part", "", "apiVersion: recast/v1\nkind: Group\nmetadata: {name: all}\nspec: {select: {site: ams, role: \"-\"}, definition: compute}\n", []string{
			`rack.yaml:74: spec.select.role: no machine can have the value "-"; want letters, digits, '.', '_' and '-', at most 63, beginning and ending with a letter or digit`,
		}},
		{"hint that is a list", "rotational: false", "serial: [a, b]", []string{
			"rack.yaml:28: spec.disk.select.serial: want one value, found a list",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			doc := rack(t)
			if tt.old == "" {
				doc += "---\n" + tt.new
			} else {
				if !strings.Contains(doc, tt.old) {
					t.Fatalf("rack.yaml does not hold %q", tt.old)
				}
				doc = strings.Replace(doc, tt.old, tt.new, 1)
			}
			s, err := Parse([]File{{Name: "rack.yaml", Data: []byte(doc)}})
			if s != nil {
				t.Error("a set was returned")
			}
			problems, ok := ProblemsOf(err)
			if !ok {
				t.Fatalf("no problems but %v", err)
			}
			if d := cmp.Diff(tt.want, strings.Split(problems.Error(), "\n")); d != "" {
				t.Error(d)
			}
		})
	}
}
