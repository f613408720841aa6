package provision

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"recast/bmc"
	"recast/inventory"
	"recast/ipxe"
)

// saw makes an observation with what a test changes.
func saw(kind inventory.ObservationKind, change ...func(*inventory.Observation)) TimelineEntry {
	o := &inventory.Observation{Kind: kind, MAC: testMAC(1), Client: "firmware", Arch: 7}
	for _, f := range change {
		f(o)
	}
	return TimelineEntry{Kind: "seen", Text: seenText(*o), Seen: o}
}

func by(client string) func(*inventory.Observation) {
	return func(o *inventory.Observation) { o.Client = client }
}
func arch(n uint16) func(*inventory.Observation) {
	return func(o *inventory.Observation) { o.Arch = n }
}
func detail(s string) func(*inventory.Observation) {
	return func(o *inventory.Observation) { o.Detail = s }
}
func bad(s string) func(*inventory.Observation) {
	return func(o *inventory.Observation) { o.Error = s }
}
func part(n, size int64, block int) func(*inventory.Observation) {
	return func(o *inventory.Observation) { o.Bytes, o.Size, o.BlockSize = n, size, block }
}
func at(a string, foreign bool) func(*inventory.Observation) {
	return func(o *inventory.Observation) { o.Server, o.Foreign = netip.MustParseAddr(a), foreign }
}
func through(a string) func(*inventory.Observation) {
	return func(o *inventory.Observation) { o.Relay = netip.MustParseAddr(a) }
}

// The lines of a boot that goes well, each with all before it.
var (
	discovered = saw(inventory.SawDiscover)
	offered    = saw(inventory.SawOffer, detail("snponly.efi"))
	requestedX = saw(inventory.SawRequest, at("10.0.0.1", false))
	acked      = saw(inventory.SawAck, detail("snponly.efi"))
	fetched    = saw(inventory.SawTFTP, detail("snponly.efi"), part(170000, 170000, 1468))
	ipxeAsks   = saw(inventory.SawDiscover, by("ipxe"))
	scripted   = saw(inventory.SawScript, by("ipxe"), detail("ramdisk: deploy, attempt 1"))
	kernel     = saw(inventory.SawFile, detail("vmlinuz"), part(8<<20, 8<<20, 0))
	initrd     = saw(inventory.SawFile, detail("initrd.img"), part(30<<20, 30<<20, 0))
	system     = saw(inventory.SawAck, by("os"))

	toAck    = []TimelineEntry{discovered, offered, requestedX, acked}
	toLoader = append(slices.Clone(toAck), fetched)
	toScript = append(slices.Clone(toLoader), ipxeAsks, offered, requestedX, acked, scripted)
)

func with(lines []TimelineEntry, more ...TimelineEntry) []TimelineEntry {
	return append(slices.Clone(lines), more...)
}

// TestEveryFindingOfTheCatalogueIsFound goes through the catalogue of what keeps
// a machine from booting, row by row: what was seen, what is missing, the first
// cause, and what to do.
func TestEveryFindingOfTheCatalogueIsFound(t *testing.T) {
	uuid := "11223344-5566-7788-99aa-bbccddeeff00"
	foreign := `network "rack1": another DHCP server, 10.0.0.9 (52:54:00:00:00:09), answers on eth0 beside us; stop it`
	failed := func(why string) func(*suspects) {
		return func(q *suspects) { q.View.Status.Phase, q.View.Status.LastError = Failed, why }
	}
	proxy := func(q *suspects) { q.Network.DHCP = inventory.DHCPProxy }
	for _, c := range []struct {
		name    string
		step    StepName
		seen    []TimelineEntry
		change  func(*suspects)
		missing string
		code    string // of the first cause
		next    string // what it says to do, in part
		also    string // another code
	}{
		{name: "no DISCOVER after power on", step: StepBooting, missing: "nothing was heard from it on the network since it was switched on 2m0s ago", code: "no-discover", next: "recast power status m1", also: "no-link"},
		{name: "nobody switched it on", step: StepAwaitingPerson, change: func(q *suspects) { q.View.Machine.BMC = nil }, missing: "a person has to power-cycle it: nothing was heard", code: "awaits-person", next: "by hand", also: "no-discover"},
		{name: "its MAC is declared wrong, and its UUID known", step: StepBooting, missing: "nothing was heard", code: "discover-unknown-mac", next: "nics[].mac",
			change: func(q *suspects) {
				q.View.Machine.UUID = uuid
				q.Strangers = []inventory.Observation{{MAC: "52:54:00:00:00:99", UUID: uuid, Time: t0}}
			}},
		{name: "its MAC may be declared wrong", step: StepBooting, missing: "nothing was heard", code: "discover-unknown-mac", next: "nics[].mac",
			change: func(q *suspects) {
				q.Strangers = []inventory.Observation{{MAC: "52:54:00:00:00:99", Network: "rack1", Time: t0}}
			}},
		{name: "strangers of yesterday and elsewhere say nothing", step: StepBooting, missing: "nothing was heard", code: "no-discover",
			change: func(q *suspects) {
				q.Strangers = []inventory.Observation{{MAC: "52:54:00:00:00:99", Network: "rack1", Time: t0.Add(-24 * time.Hour)}, {MAC: "52:54:00:00:00:98", Network: "rack2", Time: t0}}
			}},
		{name: "no relay passes its packets on", step: StepBooting, missing: "nothing was heard", code: "relay-missing", next: "ip helper-address", change: func(q *suspects) { q.Attached = false }},
		{name: "switched off meanwhile", step: StepBooting, seen: toAck, change: bmcSays(bmc.PowerOff, bmc.BootNetwork), missing: "it is switched off, as its BMC shows just now", code: "powered-off", next: "recast abort m1, then recast retry m1"},
		{name: "switched off while it writes", step: StepWriting, change: bmcSays(bmc.PowerOff, bmc.BootDefault), missing: "switched off", code: "powered-off", next: "recast retry m1"},
		{name: "switched off and known to be, while it starts", step: StepStarting, change: bmcSays(bmc.PowerOff, bmc.BootDefault), missing: "switched off", code: "powered-off", next: "recast power on m1 after recast abort m1"},
		{name: "on, and network boot still armed", step: StepBooting, change: bmcSays(bmc.PowerOn, bmc.BootNetwork), missing: "nothing was heard", code: "no-discover", next: "console"},
		{name: "the BMC is silent now", step: StepBooting, change: func(q *suspects) { q.BMC = bmcNow{at: t0, err: bmc.ErrTimeout} }, missing: "nothing was heard", code: "no-discover", also: "bmc-unreachable"},
		{name: "nobody on its network is heard", step: StepBooting, change: func(q *suspects) { q.Silent = []string{"m2", "m3", "m4", "m5"} }, missing: "nothing was heard", code: "network-silent", next: "recast doctor", also: "no-discover"},
		{name: "just switched on", step: StepBooting, change: func(q *suspects) { q.Timeline[len(q.Timeline)-2].Time = t0.Add(100 * time.Second) }, missing: "nothing was heard", code: "on-its-way", next: "ask again", also: "no-discover"},
		{name: "its relay is in no Network", step: StepBooting, seen: []TimelineEntry{saw(inventory.SawUnanswered, detail("DISCOVER"), bad("no Network here"), through("10.9.0.1"))},
			missing: "got no answer: no Network here", code: "relay-without-network", next: "declare a Network whose subnet holds 10.9.0.1"},
		{name: "link selection of a subnet nobody declared", step: StepBooting, seen: []TimelineEntry{saw(inventory.SawUnanswered, detail("DISCOVER for 172.16.0.0"), bad("no Network on the link that its relay selects"), through("10.20.0.254"))},
			missing: "(DISCOVER for 172.16.0.0) and got no answer", code: "relay-without-network", next: "link selection"},
		{name: "it asks on another link", step: StepBooting, seen: []TimelineEntry{saw(inventory.SawUnanswered, detail("DISCOVER"), bad("no Network here"))}, missing: "no answer", code: "other-link"},
		{name: "another server keeps us silent", step: StepBooting, seen: []TimelineEntry{saw(inventory.SawUnanswered, detail("DISCOVER"), bad("another DHCP server"))},
			change: func(q *suspects) { q.Findings = []string{foreign} }, missing: "no answer: another DHCP server", code: "other-server", next: "stop it"},
		{name: "the pool is empty", step: StepBooting, seen: []TimelineEntry{discovered, saw(inventory.SawUnanswered, detail("DISCOVER"), bad("no free address"))}, missing: "no free address", code: "pool-empty", next: "a larger pool"},
		{name: "the store takes no lease", step: StepBooting, seen: []TimelineEntry{discovered, saw(inventory.SawUnanswered, detail("REQUEST"), bad("store"))}, missing: "store", code: "store", next: "recast doctor"},
		{name: "the server has just begun", step: StepBooting, seen: []TimelineEntry{saw(inventory.SawUnanswered, detail("DISCOVER"), bad("looking for other servers"))}, missing: "looking", code: "probing"},
		{name: "asked, no OFFER", step: StepBooting, seen: []TimelineEntry{discovered}, missing: "was offered none", code: "not-offered", next: "recast describe network rack1"},
		{name: "OFFER not followed by REQUEST", step: StepBooting, seen: []TimelineEntry{discovered, offered}, missing: "has not asked for it", code: "offer-lost", next: "recast capture m1"},
		{name: "another server won, and is named", step: StepBooting, seen: []TimelineEntry{discovered, offered, saw(inventory.SawRequest, at("10.0.0.9", true))},
			missing: "another DHCP server, 10.0.0.9", code: "other-server-won", next: "stop that server"},
		{name: "ProxyDHCP ignored", step: StepBooting, change: proxy, seen: []TimelineEntry{discovered, offered, saw(inventory.SawRequest, at("10.0.0.9", true))},
			missing: "does not take the boot file from us", code: "proxy-ignored", next: "dhcp: authoritative", also: "proxy-blocked"},
		{name: "ProxyDHCP ignored, nothing asked", step: StepBooting, change: proxy, seen: []TimelineEntry{discovered, offered}, missing: "boot file from us", code: "proxy-ignored"},
		{name: "no loader for its architecture", step: StepBooting, seen: []TimelineEntry{saw(inventory.SawDiscover, arch(2)), saw(inventory.SawOffer, arch(2)), requestedX, saw(inventory.SawAck, arch(2))},
			missing: "DHCP's answer names no loader", code: "arch-mismatch", next: "another mode"},
		{name: "BIOS where UEFI is declared", step: StepBooting, change: func(q *suspects) { q.View.Machine.Firmware = inventory.UEFI },
			seen: []TimelineEntry{discovered, offered, requestedX, saw(inventory.SawAck, arch(0), detail("undionly.kpxe"))}, missing: "loader", code: "arch-mismatch", next: "firmware:"},
		{name: "arm64 where amd64 is declared", step: StepBooting,
			seen: []TimelineEntry{saw(inventory.SawDiscover, arch(11)), saw(inventory.SawOffer, arch(11)), requestedX, saw(inventory.SawAck, arch(11))}, missing: "loader", code: "arch-mismatch", next: "arch:"},
		{name: "its loader is not here", step: StepBooting, seen: []TimelineEntry{discovered, saw(inventory.SawNoLoader, bad(`loader "snponly.efi" is missing: fetch it`)), saw(inventory.SawOffer), requestedX, saw(inventory.SawAck)},
			missing: "DHCP's answer names no loader", code: "no-loader", next: "recast doctor"},
		{name: "nor beside somebody else's server", step: StepBooting, change: proxy, seen: []TimelineEntry{discovered, saw(inventory.SawNoLoader, bad(`loader "snponly.efi" is missing: fetch it`)), saw(inventory.SawOffer)},
			missing: "DHCP's answer names no loader", code: "no-loader"},
		{name: "its loader is not here, and it asks for one of its own", step: StepBooting, seen: []TimelineEntry{discovered, saw(inventory.SawNoLoader, bad(`loader "snponly.efi" is missing: fetch it`)), saw(inventory.SawOffer), requestedX, saw(inventory.SawAck),
			saw(inventory.SawTFTP, detail(`"snponly.efi"`), bad("no such file"))}, missing: "is not served", code: "no-loader", also: "bootfile-not-found"},
		{name: "HTTP Boot fits what is declared", step: StepBooting, change: func(q *suspects) { q.View.Machine.Firmware = inventory.UEFI },
			seen: []TimelineEntry{discovered, offered, requestedX, saw(inventory.SawAck, by("http"), arch(16), detail("http://10.0.0.1:8080/boot/loader/snponly.efi"))}, missing: "loader", code: "tftp-blocked"},
		{name: "no boot file in the answer", step: StepBooting, seen: []TimelineEntry{discovered, saw(inventory.SawOffer), requestedX, saw(inventory.SawAck)}, missing: "DHCP's answer names no loader", code: "no-boot-file"},
		{name: "TFTP blocked", step: StepBooting, seen: toAck, missing: "has not asked for a loader", code: "tftp-blocked", next: "recast doctor"},
		{name: "TFTP's port taken", step: StepBooting, seen: toAck, change: func(q *suspects) { q.Findings = []string{NoTFTP + "listen udp :69: held"} }, missing: "has not asked for a loader", code: "tftp-not-served", also: "tftp-blocked"},
		{name: "boot file not found", step: StepBooting, seen: with(toAck, saw(inventory.SawTFTP, detail(`"pxelinux.0"`), bad("no such file"))), missing: `"pxelinux.0", is not served`, code: "bootfile-not-found", next: "recast describe network rack1"},
		{name: "boot file missing here", step: StepBooting, seen: with(toAck, saw(inventory.SawFile, detail("snponly.efi"), bad(`loader "snponly.efi" is missing: fetch it`))), missing: "is not served", code: "bootfile-not-found", next: "setup.sh"},
		{name: "TFTP never acknowledged", step: StepBooting, seen: with(toAck, saw(inventory.SawTFTP, detail("snponly.efi"), bad("no answer"))), missing: "first packet", code: "tftp-stalls", next: "any high port"},
		{name: "TFTP stalls at the first block", step: StepBooting, seen: with(toAck, saw(inventory.SawTFTP, detail("snponly.efi"), part(0, 170000, 1468), bad("no answer to the first block"))),
			missing: "first block of the loader snponly.efi, of 1468 bytes, was not acknowledged", code: "tftp-stalls", next: "MTU"},
		{name: "just answered by DHCP", step: StepBooting, seen: toAck, change: func(q *suspects) { q.Timeline[len(q.Timeline)-1].Seen.Time = t0.Add(110 * time.Second) }, missing: "has not asked for a loader", code: "on-its-way", also: "tftp-blocked"},
		{name: "TFTP stalls after a block", step: StepBooting, seen: with(toAck, saw(inventory.SawTFTP, detail("snponly.efi"), part(14680, 170000, 1468), bad("timeout"))),
			missing: "broke off after 14680 of 170000 bytes (block 10 of 1468 bytes each)", code: "tftp-stalls", next: "MTU"},
		{name: "iPXE loops", step: StepBooting, seen: with(toLoader, append(slices.Clone(toLoader), toLoader...)...), missing: "fetched a loader 3 times", code: "ipxe-loops", next: "recast describe network rack1"},
		{name: "Secure Boot refused", step: StepBooting, seen: toLoader, change: func(q *suspects) {
			q.View.Status.Facts = &inventory.Facts{Boot: inventory.BootFacts{Mode: "uefi", SecureBoot: true}}
		}, missing: "was fetched whole", code: "secure-boot-refused", next: "signed loaders"},
		{name: "Secure Boot perhaps", step: StepBooting, seen: toLoader, missing: "was fetched whole", code: "loader-hangs", also: "secure-boot-refused"},
		{name: "no script", step: StepBooting, seen: with(toLoader, ipxeAsks, offered, requestedX, saw(inventory.SawAck, by("ipxe"), detail("http://x/boot/script?"))), missing: "not for its boot script", code: "script-unreachable", next: "recast doctor"},
		{name: "not armed", step: StepBooting, seen: with(toLoader, ipxeAsks, saw(inventory.SawScript, by("ipxe"), detail("local: deploying, arming"))), missing: "did not start the ramdisk: local deploying, arming", code: "not-armed"},
		{name: "behind NAT", step: StepBooting, seen: with(toLoader, ipxeAsks, saw(inventory.SawScript, by("ipxe"), detail("ramdisk: deploy, attempt 1"), func(o *inventory.Observation) {
			o.Remote = netip.MustParseAddr("10.20.0.1")
		})), missing: "was asked for from 10.20.0.1, which is not its own address", code: "script-from-elsewhere", next: "without NAT"},
		{name: "its turn has not come", step: StepBooting, seen: with(toLoader, ipxeAsks, saw(inventory.SawScript, by("ipxe"), detail(ipxe.SawWait+": 8 machines fetch the ramdisk"))), missing: "its turn", code: "waits-its-turn", next: "nothing"},
		{name: "shim, GRUB and its configuration are no loop", step: StepBooting, seen: with(toAck, saw(inventory.SawTFTP, detail("shimx64.efi"), part(9, 9, 512)),
			saw(inventory.SawTFTP, detail("grubx64.efi"), part(9, 9, 512)), saw(inventory.SawTFTP, detail("grub.cfg-01-52-54-00-00-00-01"), part(9, 9, 512))),
			change: func(q *suspects) { q.View.Machine.SecureBoot = true }, missing: "was fetched whole", code: "secure-boot-refused"},
		{name: "DHCPv6 unanswered beside IPv4", step: StepBooting, seen: with(toAck, saw(inventory.SawUnanswered, bad("no Network here"), func(o *inventory.Observation) { o.V6 = "SOLICIT" })), missing: "has not asked for a loader", code: "tftp-blocked"},
		{name: "no ramdisk here", step: StepBooting, seen: with(toLoader, ipxeAsks, saw(inventory.SawScript, by("ipxe"), detail("local: there is no ramdisk: recast ramdisk build"))), missing: "there is no ramdisk", code: "no-ramdisk", next: "recast ramdisk build"},

		{name: "script fetched, kernel not", step: StepClaiming, seen: toScript, missing: "has not fetched the kernel", code: "script-fetched-kernel-not", next: "recast doctor"},
		{name: "iPXE too old", step: StepClaiming, seen: with(toScript, saw(inventory.SawScript, by("ipxe"), detail("ramdisk: x"), func(o *inventory.Observation) { o.Version = "1.0.0+git-20190125" })),
			missing: "has not fetched the kernel", code: "ipxe-too-old", next: "newer loader"},
		{name: "kernel broken off", step: StepClaiming, seen: with(toScript, saw(inventory.SawFile, detail("vmlinuz"), part(1<<20, 8<<20, 0), bad("the machine broke it off"))), missing: "vmlinuz did not arrive: 1048576 of 8388608", code: "http-stalls", next: "MTU"},
		{name: "kernel gone", step: StepClaiming, seen: with(toScript, saw(inventory.SawFile, detail("vmlinuz"), bad("answered 404 Not Found"))), missing: "vmlinuz did not arrive", code: "kernel-not-found", next: "recast ramdisk build"},
		{name: "kernel and no ramdisk", step: StepClaiming, seen: with(toScript, kernel), missing: "has not fetched the ramdisk", code: "no-memory"},
		{name: "ramdisk silent", step: StepClaiming, seen: with(toScript, kernel, initrd), missing: "the ramdisk has not asked for an address", code: "ramdisk-no-network", also: "ramdisk-dies"},
		{name: "kernel refused under Secure Boot", step: StepClaiming, seen: with(toScript, saw(inventory.SawFile, detail("ramdisk.efi"), part(8<<20, 8<<20, 0)), saw(inventory.SawScript, by("ipxe"), detail("ramdisk: x"))),
			change: func(q *suspects) {
				q.View.Machine.SecureBoot = true
				q.Timeline[len(q.Timeline)-1].Seen.Time = t0.Add(30 * time.Second)
			}, missing: "the ramdisk has not asked for an address", code: "kernel-refused", next: "recast ramdisk export", also: "ramdisk-dies"},
		{name: "ramdisk silent for a moment", step: StepClaiming, seen: with(toScript, kernel, initrd), change: func(q *suspects) { q.Timeline[len(q.Timeline)-1].Seen.Time = t0.Add(110 * time.Second) },
			missing: "the ramdisk has not asked for an address", code: "on-its-way", also: "ramdisk-no-network"},
		{name: "ramdisk gets no address", step: StepClaiming, seen: with(toScript, kernel, initrd, saw(inventory.SawUnanswered, by("os"), detail("DISCOVER"), bad("no free address"))), missing: "no free address", code: "pool-empty"},
		{name: "ramdisk takes no offer", step: StepClaiming, seen: with(toScript, kernel, initrd, saw(inventory.SawDiscover, by("os")), saw(inventory.SawOffer, by("os"))), missing: "asks for an address and has taken none", code: "offer-lost", next: "recast capture m1"},
		{name: "agent port blocked", step: StepClaiming, seen: with(toScript, kernel, initrd, system), missing: "has not reached the agent port", code: "agent-blocked", next: "recast doctor", also: "agent-no-tls"},
		{name: "agent without TLS", step: StepClaiming, seen: with(toScript, kernel, initrd, system, saw(inventory.SawTLS, by(""), bad("remote error: tls: bad certificate"))), missing: "bad certificate", code: "agent-no-tls", next: "clock"},
		{name: "kernel panic", step: StepClaiming, seen: with(toScript, kernel, initrd, system), change: says("kernel: [ 15.383120] Kernel panic - not syncing: VFS: Unable to mount root fs", "kernel: [ 15.38] Call Trace:"),
			missing: "the ramdisk's kernel has panicked", code: "kernel-panic", next: "recast explain m1 --lines 200"},
		{name: "agent gave up", step: StepClaiming, seen: with(toScript, kernel, initrd, system), change: says("recast-agent: STOPPED: bring up the network: no link"), missing: "has given up", code: "agent-stopped"},
		{name: "panic while it writes, of a bad disk", step: StepWriting, change: says("kernel: [ 9.1] I/O error, dev sda, sector 8 op 0x1:(WRITE)", "kernel: [ 15.383120] Kernel panic - not syncing: x"), missing: "panicked", code: "kernel-panic", also: "disk-errors"},
		{name: "quiet, with a disk that fails", step: StepWriting, change: says("kernel: [ 9.1] I/O error, dev sda, sector 8 op 0x1:(WRITE)"), missing: "nothing was heard from the ramdisk", code: "disk-errors", next: "recast describe m1", also: "agent-quiet"},
		{name: "claim refused", step: StepClaiming, seen: with(toScript, kernel, initrd, system, saw(inventory.SawClaim, by(""), bad("refused: the nonce was used"))), missing: "refused: the nonce was used", code: "claim-refused"},

		{name: "agent quiet", step: StepInspecting, missing: "nothing was heard from the ramdisk for 2m0s", code: "agent-quiet"},
		{name: "agent quiet while it writes", step: StepWriting, change: func(q *suspects) {
			q.View.Status.Progress = &Progress{At: t0.Add(time.Minute), Since: t0, Rate: 1e8}
		}, missing: "for 1m0s", code: "agent-quiet"},
		{name: "write slow", step: StepWriting, change: func(q *suspects) {
			q.View.Status.Progress = &Progress{At: t0.Add(119 * time.Second), Since: t0, Rate: 5e6}
		}, missing: "at 4.8 MiB/s", code: "write-slow", next: "recast describe m1"},
		{name: "write as it should", step: StepWriting, change: func(q *suspects) {
			q.View.Status.Progress = &Progress{At: t0.Add(119 * time.Second), Since: t0, Rate: 5e8}
		}},
		{name: "disk not matched", step: StepInspecting, change: failed("choose a disk: no disk fits"), code: "disk-not-matched", next: "disk.select"},
		{name: "disk too small", step: StepInspecting, change: failed("disk serial X has 4 GiB, the image with its configuration needs 8 GiB"), code: "disk-unfit"},
		{name: "digest mismatch", step: StepVerifying, change: failed(`the ramdisk: the disk reads back as "aa", not as image "bb"`), code: "digest-mismatch", next: "recast image verify IMAGE; recast retry m1"},
		{name: "image not fetched", step: StepWriting, change: failed("the ramdisk: fetch image: connection refused"), code: "image-not-fetched", next: "recast doctor"},
		{name: "agent lost", step: StepWriting, change: failed("nothing was heard from the ramdisk for 6m0s while writing"), code: "agent-quiet"},
		{name: "no byte moved", step: StepWriting, change: failed("no byte moved while writing for 10m0s"), code: "write-slow"},
		{name: "failed before its script", step: StepBooting, seen: toAck, change: failed("no network boot: no request for a boot script"), code: "tftp-blocked"},

		{name: "boots again into the installer", step: StepStarting, seen: []TimelineEntry{discovered, scripted}, code: "boots-again", next: "boot order"},
		{name: "boots from the network again", step: StepStarting, seen: []TimelineEntry{discovered}, code: "boots-again"},
		{name: "system up, agent port blocked", step: StepStarting, seen: []TimelineEntry{system}, code: "agent-blocked", next: "recast doctor"},
		{name: "system takes no offer", step: StepStarting, seen: []TimelineEntry{saw(inventory.SawDiscover, by("os")), saw(inventory.SawOffer, by("os"))}, code: "offer-lost"},
		{name: "system gets no offer", step: StepStarting, seen: []TimelineEntry{saw(inventory.SawUnanswered, by("os"), detail("DISCOVER"), bad("no free address"))}, code: "pool-empty"},
		{name: "system up, clock wrong", step: StepStarting, seen: []TimelineEntry{system, saw(inventory.SawTLS, by(""), bad("certificate has expired"))}, code: "agent-no-tls", next: "clock"},
		{name: "nothing of the system", step: StepStarting, code: "disk-not-started", also: "powered-off"},
		{name: "has just begun to start", step: StepStarting, change: func(q *suspects) { q.View.Status.Since = t0.Add(100 * time.Second) }, code: "on-its-way", also: "disk-not-started"},
		{name: "off when last seen, and on now", step: StepStarting, change: func(q *suspects) {
			q.View.Status.Power = "off"
			bmcSays(bmc.PowerOn, bmc.BootDefault)(q)
		}, code: "disk-not-started"},
		{name: "switched off while it starts", step: StepStarting, change: func(q *suspects) { q.View.Status.Power = "off" }, code: "powered-off", next: "recast power on m1"},
		{name: "active and restarting", step: StepNone, seen: []TimelineEntry{scripted, scripted, scripted}, change: func(q *suspects) { q.View.Status.Phase = Active }, code: "boots-again"},
		{name: "active behind its gate", step: StepNone, seen: []TimelineEntry{scripted, scripted, scripted}, change: func(q *suspects) { q.View.Status.Phase, q.View.Status.Gate = Active, &GateSeen{} }},
		{name: "boots again behind its gate", step: StepStarting, seen: []TimelineEntry{discovered, scripted}, change: func(q *suspects) { q.View.Status.Gate = &GateSeen{} }, code: "boots-again", next: "behind the network"},
		{name: "active", step: StepNone, seen: []TimelineEntry{scripted}, change: func(q *suspects) { q.View.Status.Phase = Active }},

		{name: "BMC: wrong password", step: StepStopping, change: bmcSaid("off: the BMC refused the user or password: 401"), code: "bmc-auth", next: "recast secret set rack-bmc, then: recast retry m1"},
		{name: "BMC: locked out", step: StepStopping, change: bmcSaid("off: the BMC has locked the account, or this server, out: status 401"), code: "bmc-locked", next: "recast retry m1"},
		{name: "BMC: cipher", step: StepStopping, change: bmcSaid("off: the BMC does not offer this: cipher suite 17 is refused"), code: "bmc-cipher", next: "cipherSuite"},
		{name: "BMC: sessions full", step: StepArming, change: bmcSaid("arm: the BMC is busy: 503 Base.SessionLimitExceeded: too many sessions"), code: "bmc-sessions", next: "sessions"},
		{name: "BMC: licence", step: StepArming, change: bmcSaid("arm: the BMC refused this: 403: License required"), code: "bmc-licence", next: "licence"},
		{name: "BMC: certificate changed", step: StepStopping, change: bmcSaid("off: the BMC's certificate is not the pinned one: 10.9.0.1 shows …"), code: "bmc-certificate", next: "bmc.pin"},
		{name: "BMC: another machine's", step: StepStopping, change: failed("power off: nothing was switched: the BMC is on another board, that of m2: serial A before, B now"), code: "bmc-other-board", next: "recast bmc enrol m1, then: recast retry m1"},
		{name: "BMC: silent", step: StepPowering, change: bmcSaid("on: the BMC does not answer: connection refused"), code: "bmc-unreachable", next: "recast power status m1"},
		{name: "BMC: yes, and nothing", step: StepArming, change: bmcSaid("arm: the BMC accepted the request but the change was not seen"), code: "bmc-lies"},
		{name: "BMC: nothing wrong", step: StepStopping},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := suspects{Attached: true, Network: &inventory.Network{Name: "rack1", DHCP: inventory.DHCPAuthoritative},
				View: View{Name: "m1", Group: "g", Machine: &inventory.Machine{Name: "m1", Arch: inventory.AMD64, BMC: &inventory.BMCRef{Credentials: "rack-bmc"}},
					Status: Status{Machine: "m1", Phase: Deploying, Step: c.step, Since: t0}}}
			if c.step != StepNone {
				first := StepPowering
				if c.step == StepAwaitingPerson || c.step == StepStopping {
					first = c.step
				}
				q.Timeline = append(q.Timeline, TimelineEntry{Time: t0.Add(-24 * time.Hour), Kind: "step", Text: string(StepPowering)}, saw(inventory.SawScript, detail("of yesterday")))
				q.Timeline = append(q.Timeline, TimelineEntry{Time: t0, Kind: "step", Text: string(first)})
				if c.step != first {
					q.Timeline = append(q.Timeline, TimelineEntry{Time: t0, Kind: "step", Text: string(c.step)})
				}
			}
			for _, l := range c.seen {
				o := *l.Seen
				l.Time, o.Time = t0, t0
				l.Seen = &o
				q.Timeline = append(q.Timeline, l)
			}
			if c.change != nil {
				c.change(&q)
			}
			missing, causes := diagnose(q, t0.Add(2*time.Minute))
			if !strings.Contains(missing, c.missing) {
				t.Errorf("missing %q, want %q", missing, c.missing)
			}
			var codes []string
			for _, c := range causes {
				codes = append(codes, c.Code)
				if c.Text == "" || c.Next == "" || strings.Contains(c.Text+c.Next, "%!") {
					t.Errorf("%+v", c)
				}
			}
			if c.code == "" {
				if len(codes) > 0 {
					t.Errorf("causes %q, want none", codes)
				}
				return
			}
			if len(codes) == 0 || codes[0] != c.code || !strings.Contains(causes[0].Next, c.next) {
				t.Fatalf("causes %+v, want %s first, with %q", causes, c.code, c.next)
			}
			if c.also != "" && !slices.Contains(codes, c.also) {
				t.Errorf("no %s in %q", c.also, codes)
			}
		})
	}
}

func bmcSaid(text string) func(*suspects) {
	return func(q *suspects) {
		q.Timeline = append(q.Timeline, TimelineEntry{Time: t0, Kind: "seen", Text: bmcPrefix + text})
	}
}

func bmcSays(power bmc.PowerState, next bmc.BootDevice) func(*suspects) {
	return func(q *suspects) { q.BMC = bmcNow{at: t0, power: power, next: next} }
}

// says adds lines of syslog.
func says(lines ...string) func(*suspects) {
	return func(q *suspects) {
		for _, l := range lines {
			q.Timeline = append(q.Timeline, TimelineEntry{Time: t0, Kind: string(inventory.SawSyslog), Text: l})
		}
	}
}

// An explanation reads the BMC, once in a while, and changes nothing.
func TestExplainAsksTheBMC(t *testing.T) {
	s := newSite(t, 2)
	s.apply(s.yaml(true), "m1", "m2")
	s.await("m1", Deploying, StepBooting)
	s.await("m2", Deploying, StepBooting)
	fake := s.bmcs["10.9.0.1"]
	s.until("its BMC, which may still be at work, says on", func() bool {
		x, err := s.Explain(t.Context(), "m1")
		return err == nil && strings.HasPrefix(x.Power, "on, ")
	})
	asked := fake.Count("power")
	if _, err := s.Explain(t.Context(), "m1"); err != nil || fake.Count("power") != asked {
		t.Errorf("asked again at once: %v", err)
	}
	s.machine("m1").bmcMu.Lock()
	s.machine("m1").asked = bmcNow{}
	x, err := s.Explain(t.Context(), "m1") // its BMC is at work
	s.machine("m1").bmcMu.Unlock()
	if err != nil || x.Power != "" {
		t.Errorf("power %q, %v", x.Power, err)
	}
	fake.SetPowered(false)
	if x, err = s.Explain(t.Context(), "m1"); err != nil || !strings.HasPrefix(x.Power, "off, ") || x.Causes[0].Code != "powered-off" {
		t.Errorf("%+v %v", x, err)
	}
	if v, _ := s.View("m1"); v.Status.Step != StepBooting || v.Status.Power == "off" {
		t.Errorf("explaining changed it: %+v", v.Status)
	}
	// What we do to it ourselves is seen at once.
	if err := s.Abort(t.Context(), "m1", "ann"); err != nil {
		t.Fatal(err)
	}
	if err := s.Retry(t.Context(), "m1", "ann"); err != nil {
		t.Fatal(err)
	}
	s.await("m1", Deploying, StepBooting)
	if x, err = s.Explain(t.Context(), "m1"); err != nil || strings.HasPrefix(x.Power, "off") {
		t.Errorf("after the next try: %+v %v", x, err)
	}
	s.bmcs["10.9.0.2"].SetFault(bmc.FaultAuth)
	if x, err = s.Explain(t.Context(), "m2"); err != nil || !strings.HasPrefix(x.Power, "not known: ") {
		t.Errorf("power %q, %v", x.Power, err)
	}
}

// The servers' observations reach the explanation, a stranger's included.
func TestExplainReadsWhatWasSeen(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true), "m1")
	s.await("m1", Deploying, StepBooting)
	s.Observe(inventory.Observation{Kind: inventory.SawDiscover, MAC: "52:54:00:00:99:99", Client: "firmware"})
	x, err := s.Explain(t.Context(), "m1")
	if err != nil || len(x.Causes) == 0 || x.Causes[0].Code != "discover-unknown-mac" || !strings.Contains(x.Causes[0].Text, "52:54:00:00:99:99") {
		t.Fatalf("%v %+v", err, x)
	}
	s.Observe(inventory.Observation{Kind: inventory.SawDiscover, MAC: testMAC(1), Client: "firmware", Arch: 7})
	s.Observe(inventory.Observation{Kind: inventory.SawOffer, MAC: testMAC(1), Client: "firmware", Arch: 7, Detail: "snponly.efi"})
	s.Observe(inventory.Observation{Kind: inventory.SawRequest, MAC: testMAC(1), Client: "firmware", Server: netip.MustParseAddr("10.0.0.9"), Foreign: true})
	if x, err = s.Explain(t.Context(), "m1"); err != nil || x.Causes[0].Code != "other-server-won" || !strings.Contains(x.Missing, "10.0.0.9") {
		t.Errorf("%v %+v", err, x)
	}
}

func TestExplainSaysThePowerOfAStartingMachine(t *testing.T) {
	v := View{Name: "m1", Machine: &inventory.Machine{Name: "m1"}, Group: "g", Status: Status{Phase: Deploying, Step: StepStarting, Power: "on", Since: t0}}
	if x := explain(suspects{View: v}, t0.Add(time.Minute)); x.State != "deploying, starting for 1m0s, its power last seen on" {
		t.Errorf("state %q", x.State)
	}
}

func TestWhoIsUndeclaredAndHeardIsBounded(t *testing.T) {
	var s strangers
	for i := range 3 * keepStrangers {
		s.saw(inventory.Observation{Kind: inventory.SawDiscover, MAC: testMAC(i)})
	}
	s.saw(inventory.Observation{Kind: inventory.SawDiscover, MAC: testMAC(3*keepStrangers - 1), Detail: "again"})
	s.saw(inventory.Observation{Kind: inventory.SawTFTP, MAC: testMAC(1)})
	if l := s.list(); len(l) != keepStrangers || l[len(l)-1].Detail != "again" {
		t.Errorf("%d are kept, the last %+v", len(l), l[len(l)-1])
	}
}

// A machine that comes by another firmware than is declared is written all the
// same: it is a finding, until one of both is corrected.
func TestAnotherFirmwareThanDeclaredIsFound(t *testing.T) {
	s := newSite(t, 1)
	yaml := strings.Replace(s.yaml(true), "  bmc:", "  firmware: uefi\n  bmc:", 1)
	s.apply(yaml, "m1")
	s.await("m1", Deploying, StepBooting)
	reply, err := s.Claim(t.Context(), inventory.Claim{Nonce: s.nonce(1), MAC: testMAC(1), UUID: testUUID(1), Serial: "SN1", BootID: "b1"}, testAddr(1))
	if err != nil {
		t.Fatal(err)
	}
	facts := testFacts(1, testUUID(1))
	var tr transition
	for _, c := range []struct {
		mode string
		want int
	}{{"uefi", 0}, {"bios", 1}, {"bios", 1}, {"uefi", 0}} {
		facts.Boot.Mode = c.mode
		if tr.mode(Inspected{Facts: facts, Declared: s.Set().Machine("m1")}); len(tr.Status.Findings) != c.want {
			t.Errorf("%s: findings %q", c.mode, tr.Status.Findings)
		}
	}
	facts.Boot.Mode = "bios"
	if _, err := s.Inventory(t.Context(), reply.Token, facts); err != nil {
		t.Fatal(err)
	}
	if x, err := s.Explain(t.Context(), "m1"); err != nil || !slices.Contains(x.Findings, "firmware: it is declared firmware: uefi, and booted by bios: change the mode in its setup, or the declaration") {
		t.Errorf("findings %q, %v", x.Findings, err)
	}
}
