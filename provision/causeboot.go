package provision

import (
	"fmt"
	"strings"
	"time"

	"recast/bmc"
	"recast/inventory"
	"recast/ipxe"
)

// boot is about the way to the boot script.
func (d *diagnosis) boot() {
	switch {
	case d.Script != nil && d.st.Phase != Failed:
		d.scriptSaysNo()
	case d.IPXE != nil && d.Unanswered == nil && d.loops() < looped:
		d.lacks("iPXE has asked for an address and not for its boot script")
		d.cause("script-unreachable", "recast doctor", "the boot port over HTTP is blocked between it and this server, or another process holds it")
		d.foreign()
		d.cause("ipxe-driver", d.console(), "iPXE has trouble with this network card")
	case d.Loader != nil:
		d.loader()
	case d.Unanswered != nil:
		d.unanswered(d.Unanswered)
	case d.Elsewhere != nil:
		d.lacks("it took the address of another DHCP server, %s, and not ours", d.Elsewhere.Server)
		if d.proxy() {
			d.proxyIgnored()
			return
		}
		d.cause("other-server-won", "stop that server, or declare dhcp: proxy on network "+d.network()+" and apply",
			"another DHCP server, %s, answers the machine sooner than we do", d.Elsewhere.Server)
		d.foreign()
	case d.Acked != nil || d.Offered != nil && d.proxy():
		d.noLoader()
	case d.Offered != nil:
		d.lacks("it was offered %s and has not asked for it", d.Offered.Remote)
		d.noBootFile(d.Offered)
		d.offerLost()
	case d.Asked != nil:
		d.lacks("it has asked for an address and was offered none")
		d.foreign()
		d.cause("not-offered", "recast describe network "+d.network(), "the server had a reason: its counters show which")
	default:
		d.nothing()
	}
}

// offerLost: it asks again and again, and takes no offer.
func (d *diagnosis) offerLost() {
	d.foreign()
	d.cause("offer-lost", d.capture()+" on its side shows whether the OFFER arrives", "the offer does not reach it: DHCP snooping on the switch port (trust the server's), or a relay that drops replies")
}

func (d *diagnosis) proxy() bool { return d.Network != nil && d.Network.DHCP == inventory.DHCPProxy }

// nothing was heard of it at all.
func (d *diagnosis) nothing() {
	since := d.from
	if since.IsZero() {
		since = d.st.Since
	}
	if d.step == string(StepAwaitingPerson) {
		d.lacks("a person has to power-cycle it: nothing was heard from it on the network for%s", beforeSpace(d.now.Sub(since)))
		d.stranger(since)
		d.cause("awaits-person", "switch it off and on by hand, with the network first in its boot order", "it declares no BMC")
	} else {
		d.lacks("nothing was heard from it on the network since it was switched on%s ago", beforeSpace(d.now.Sub(since)))
		d.stranger(since)
		d.soon(since, "its firmware may still test itself, which takes servers minutes")
	}
	d.foreign()
	if n := len(d.Silent); n > 0 {
		d.cause("network-silent", "recast doctor", "nothing was heard of %s either, switched on since: what they share is the likelier cause, a firewall on this server, its interface, the switch or the VLAN", and(d.Silent))
	}
	if d.Network != nil && !d.Attached {
		d.cause("relay-missing", "point the switch's DHCP relay (ip helper-address) at this server",
			"network %s is reached through relays only, and none passed its packets on", d.Network.Name)
	}
	switch d.BMC.next {
	case bmc.BootNetwork:
		d.cause("no-discover", d.console(), "its BMC still has the network boot armed: the firmware has not come to it, or ignores it")
	case bmc.BootDefault:
		d.cause("no-discover", d.console(), "its BMC has no network boot armed any more: the firmware took it, and its network card has no PXE or HTTP Boot enabled, or the BMC dropped it")
	default:
		next := d.console()
		if m := d.View.Machine; m != nil && m.BMC != nil {
			next = fmt.Sprintf("recast power status %s, and %s", d.name, next)
		}
		d.cause("no-discover", next, "the firmware tries other devices first, or the BMC dropped the network boot: its boot order must have the network card, with PXE or HTTP Boot enabled on it")
	}
	d.cause("no-link", "recast doctor; "+d.capture(),
		"the cable or VLAN of the boot interface; its switch port is still in spanning tree listening (set it to edge, portfast)")
	if d.BMC.err != nil {
		d.bmcCause(d.BMC.err.Error())
	}
}

// and joins names, the first few of them.
func and(names []string) string {
	if n := len(names); n > 3 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:3], ", "), n-3)
	}
	return strings.Join(names, ", ")
}

func beforeSpace(t time.Duration) string {
	if t <= 0 {
		return ""
	}
	return " " + t.Round(time.Second).String()
}

// stranger looks for the machine under an address that nobody declared.
func (d *diagnosis) stranger(since time.Time) {
	uuid := ""
	if m := d.View.Machine; m != nil {
		uuid = m.UUID
	}
	if uuid == "" && d.st.Facts != nil {
		uuid = d.st.Facts.SystemVendor.UUID
	}
	var some []string
	for _, o := range d.Strangers {
		if o.Time.Before(since) {
			continue
		}
		if uuid != "" && o.UUID == uuid {
			d.cause("discover-unknown-mac", fmt.Sprintf("set nics[].mac of %s to it and apply", d.name), "it asks from %s, which nobody declared: the UUID is this machine's", o.MAC)
			return
		}
		if d.Network == nil || o.Network == "" || o.Network == d.Network.Name {
			some = append(some, string(o.MAC))
		}
	}
	if n := len(some); n > 0 {
		d.cause("discover-unknown-mac", fmt.Sprintf("compare with its label; if it is one of them, correct nics[].mac of %s and apply", d.name),
			"its hardware address may be declared wrong: since then undeclared machines asked, the last one %s", some[n-1])
	}
}

// foreign names another DHCP server that was found on its network.
func (d *diagnosis) foreign() {
	for _, f := range d.Findings {
		if strings.Contains(f, "another DHCP server") && (d.Network == nil || strings.Contains(f, fmt.Sprintf("network %q", d.Network.Name))) {
			d.cause("other-server", "stop it; recast doctor asks again", "%s", f)
		}
	}
}

func (d *diagnosis) unanswered(o *inventory.Observation) {
	d.lacks("it asked by DHCP (%s) and got no answer: %s", o.Detail, o.Error)
	switch {
	case o.Relay.IsValid() && o.Error == "no Network here":
		d.cause("relay-without-network", fmt.Sprintf("declare a Network whose subnet holds %s, and apply", o.Relay), "its packets come through relay %s, which lies in no Network with dhcp: authoritative or proxy", o.Relay)
	case o.Error == "no Network on the link that its relay selects":
		d.cause("relay-without-network", "declare a Network whose subnet holds that address, and apply, or correct link selection on the relay",
			"its relay %s selects a link (option 82, sub-option 5) that lies in no Network with dhcp: authoritative or proxy", o.Relay)
	case o.Error == "no Network here":
		d.cause("other-link", "give the server an address in network "+d.network()+", or listen: its interface", "it asks on a link where no Network is served")
	case o.Error == "another DHCP server":
		d.foreign()
		if len(d.causes) == 0 {
			d.cause("other-server", "stop it, or declare dhcp: proxy or force: true on network "+d.network(), "another DHCP server answers there, so that this one is silent")
		}
	case o.Error == "looking for other servers":
		d.cause("probing", "it asks again by itself", "the server has just begun to serve this network, and is listening for others first")
	case o.Error == "no free address":
		d.cause("pool-empty", fmt.Sprintf("give %s an ip, or network %s a larger pool, and apply", d.name, d.network()), "the pool of network %s has no free address", d.network())
	case o.Error == "store" || o.Error == "leases not read yet":
		d.cause("store", "recast doctor", "leases cannot be stored, so that no new address is given out")
	default:
		d.foreign()
		d.cause("not-answered", "recast describe network "+d.network(), "the server leaves such packets alone: %s", o.Error)
	}
}

// noBootFile: the reply named none.
func (d *diagnosis) noBootFile(o *inventory.Observation) {
	if o == nil || o.Detail != "" || o.Client == string(ipxe.LoaderIPXE) {
		return
	}
	before := len(d.causes)
	d.mode(o)
	arch := ipxe.Firmware(o.Arch)
	switch _, ok := arch.Loader(); {
	case len(d.causes) > before:
		return
	case !ok:
		d.cause("arch-mismatch", arch.Cure(), "there is no loader for %s", arch)
		return
	case d.NoLoader != nil:
		d.cause("no-loader", "recast doctor; recast get loaders", "%s", d.NoLoader.Error)
		return
	}
	d.cause("no-boot-file", "recast doctor", "the answer named no boot file: the loader is missing, or it was not the machine's turn")
}

// mode compares how the firmware came with what is declared.
func (d *diagnosis) mode(o *inventory.Observation) {
	m := d.View.Machine
	if m == nil || o == nil || o.Client == string(ipxe.LoaderOS) {
		return
	}
	arch := ipxe.Firmware(o.Arch)
	if m.Firmware != "" && (m.Firmware == inventory.UEFI) != arch.UEFI() {
		d.cause("arch-mismatch", "change the mode in its setup, or firmware: of the Machine, and apply", "it booted as %s, and is declared with firmware: %s", arch, m.Firmware)
	}
	if l, ok := arch.Loader(); ok && (l == ipxe.LoaderARM64) != (m.Arch == inventory.ARM64) {
		d.cause("arch-mismatch", "correct arch: of the Machine and apply", "it booted as %s, and is declared with arch: %s", arch, m.Arch)
	}
}

// NoTFTP begins the server's finding that it cannot serve TFTP.
const NoTFTP = "TFTP is not served: "

// noLoader: it has its address and fetched nothing.
func (d *diagnosis) noLoader() {
	o := d.Acked
	if o == nil {
		o = d.Offered
	}
	d.lacks("it has its answer from DHCP and has not asked for a loader")
	before := len(d.causes)
	if d.noBootFile(o); len(d.causes) > before {
		d.lacks("DHCP's answer names no loader")
		return
	}
	d.mode(o)
	if d.proxy() {
		d.proxyIgnored()
		return
	}
	if len(d.causes) > before {
		return
	}
	if o != nil {
		d.soon(o.Time, "it may be fetching its loader: that shows here when it ends")
	}
	for _, f := range d.Findings {
		if strings.HasPrefix(f, NoTFTP) {
			d.cause("tftp-not-served", "recast doctor", "%s", f)
		}
	}
	d.cause("tftp-blocked", "recast doctor; "+d.capture(), "TFTP (udp port 69) is blocked between it and this server, or another process holds the port")
	d.foreign()
	d.cause("loader-not-asked", d.console(), "its firmware does not like the answer, or boots another device meanwhile")
}

func (d *diagnosis) proxyIgnored() {
	d.lacks("it has an address from another server and does not take the boot file from us")
	d.cause("proxy-ignored", "declare dhcp: authoritative on network "+d.network()+" and stop the other server, or enter our boot file there",
		"its firmware does not put the two offers of ProxyDHCP together")
	d.cause("proxy-blocked", "recast doctor; "+d.capture(), "udp port 4011 is blocked between it and this server")
}

// loader is about a loader that was asked for, and what came of it.
func (d *diagnosis) loader() {
	o := d.Loader
	switch {
	case strings.Contains(o.Error, "no such file") || strings.Contains(o.Error, "is missing") || strings.Contains(o.Error, "404"):
		d.lacks("the loader it asked for, %s, is not served", o.Detail)
		if strings.Contains(o.Error, "is missing") {
			d.cause("bootfile-not-found", "sudo ./setup.sh fetches the loaders", "%s", o.Error)
			return
		}
		if d.NoLoader != nil {
			d.cause("no-loader", "recast doctor; recast get loaders", "%s", d.NoLoader.Error)
		}
		d.foreign()
		d.cause("bootfile-not-found", "recast describe network "+d.network(), "somebody else named that file: another DHCP server (options 66 and 67), or a name typed into its firmware")
	case strings.HasSuffix(o.Error, "the first block"):
		d.lacks("the first block of the loader %s, of %d bytes, was not acknowledged, and smaller packets were", o.Detail, o.BlockSize)
		d.cause("tftp-stalls", "recast doctor compares the MTU; "+d.capture(), "packets of that size are dropped on the way (MTU)")
	case o.Error != "" && o.Bytes == 0:
		d.lacks("the first packet of the loader %s was not acknowledged", o.Detail)
		d.cause("tftp-stalls", "allow udp from any high port of this server to the machines; recast doctor looks at its own firewall", "a firewall drops what does not come from port 69: TFTP answers from a port of its own")
		d.cause("no-link", d.capture(), "the way back to it is broken: gateway, VLAN, ARP")
	case o.Error != "":
		d.lacks("the loader %s broke off after %d of %d bytes%s", o.Detail, o.Bytes, o.Size, inBlocks(o))
		d.cause("tftp-stalls", "recast doctor compares the MTU; "+d.capture(), "packets of that size are dropped on the way (MTU), or packets are lost")
	case d.loops() >= looped:
		d.lacks("it fetched a loader %d times and never its script", d.loops())
		d.cause("ipxe-loops", "recast describe network "+d.network()+"; "+d.capture(),
			"iPXE is not known as such and gets a loader again: a relay or another server drops option 77 or 175, or the firmware starts over")
		d.foreign()
	default:
		d.lacks("the loader %s was fetched whole, and has not asked by DHCP", o.Detail)
		m := d.View.Machine
		if f := d.st.Facts; f != nil && f.Boot.SecureBoot || m != nil && m.SecureBoot {
			d.cause("secure-boot-refused", "declare secureBoot: true, so that it is given signed loaders alone, or switch Secure Boot off in its setup", "Secure Boot is on, and its firmware refused the loader: not signed by what it trusts, or revoked (SBAT, dbx)")
		} else if ipxe.Firmware(o.Arch).UEFI() || f == nil || f.Boot.Mode == "uefi" {
			defer d.cause("secure-boot-refused", d.console()+" for a security violation", "Secure Boot may be on: the loader is not signed")
		}
		d.mode(d.Asked)
		d.cause("loader-hangs", d.console(), "the loader cannot drive its network card")
	}
}

func inBlocks(o *inventory.Observation) string {
	if o.BlockSize == 0 {
		return ""
	}
	return fmt.Sprintf(" (block %d of %d bytes each)", o.Bytes/int64(o.BlockSize), o.BlockSize)
}

// scriptSaysNo: it asked for its script, and the answer was not the ramdisk, or was
// not believed to have gone to the machine (see fromItself).
func (d *diagnosis) scriptSaysNo() {
	kind, why, _ := strings.Cut(d.Script.Detail, ": ")
	if d.Script.Error != "" {
		why = d.Script.Error
	}
	d.lacks("its boot script did not start the ramdisk: %s", strings.TrimSpace(kind+" "+why))
	switch {
	case strings.HasPrefix(d.Script.Detail, ipxe.SawWait):
		d.missing = "its turn to fetch the ramdisk: " + d.Script.Detail
		d.cause("waits-its-turn", "nothing: it asks again by itself; recast serve --print-config shows turns", "as many machines as may fetch the ramdisk at once")
	case bootEvent(*d.Script) == BootServed{}:
		d.missing = fmt.Sprintf("its boot script was asked for from %s, which is not its own address", d.Script.Remote)
		d.cause("script-from-elsewhere", "recast get leases; let it reach this server with the address that it got, without NAT or proxy",
			"its address is another one on the way, another of its interfaces asked, or somebody else did with its hardware address")
	case strings.Contains(why, "recast ramdisk build"):
		d.cause("no-ramdisk", "recast ramdisk build", "there is no ramdisk")
	case d.Script.Error != "":
		d.cause("not-ready", "see the server's log", "the server could not say what it may boot: %s", why)
	default:
		d.cause("not-armed", "nothing, if it has come far enough since: its next boot is answered anew", "it asked when it was not its turn")
	}
}
