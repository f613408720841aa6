package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"recast/dhcp"
	"recast/inventory"
	"recast/ipxe"
)

// check is one line of doctor.
type check struct {
	Check string `json:"check"`
	State string `json:"state"` // ok, warn, skip, fail
	Text  string `json:"text"`
	Next  string `json:"next,omitempty"` // what to do
}

const (
	stateOK   = "ok"
	stateWarn = "warn"
	stateSkip = "skip"
	stateFail = "fail"
)

// Bounds of what is still well.
const (
	leastFree = 256 << 20 // the store is read-only soon
	roomFree  = 5 << 30   // one image
	ethernet  = 1500      // TFTP's blocks fill such a frame
	oldLoader = "1."      // iPXE before 2.0 (2026-03)
	certSoon  = 30 * 24 * time.Hour
)

// examine judges what was seen. It is pure.
func examine(f surroundings) []check {
	d := &doctor{surroundings: f}
	d.server()
	d.portsCheck()
	d.networks()
	d.firewall()
	d.host()
	d.certificates()
	return d.checks
}

type doctor struct {
	surroundings
	checks []check
}

func (d *doctor) say(name, state, next, format string, args ...any) {
	d.checks = append(d.checks, check{Check: name, State: state, Text: fmt.Sprintf(format, args...), Next: next})
}

func (d *doctor) server() {
	switch {
	case !d.running && errors.Is(d.statusErr, fs.ErrPermission):
		d.say("server", stateSkip, "run it as root", "its data in %s cannot be read", d.config.Data)
	case !d.running && d.held:
		d.say("server", stateFail, "run doctor where the server's network is, and see its log", "it runs, and its API does not answer: %v", d.statusErr)
	case !d.running && d.other() != "":
		d.say("server", stateWarn, "name its data folder (--data) or its configuration (--config)", "%s runs, and its data do not stand in %s", d.other(), d.config.Data)
	case !d.running:
		d.say("server", stateSkip, "recast serve starts it", "it does not run")
	case d.status.ReadOnly != "":
		d.say("server", stateFail, "mend the disk or the cluster that holds its store", "its store takes no writes: %s", d.status.ReadOnly)
	case d.status.Frozen.By != "":
		d.say("server", stateWarn, "recast unfreeze lets rollouts go on", "it runs (%s), and is frozen", d.status.Version)
	default:
		d.say("server", stateOK, "", "it runs (%s)", d.status.Version)
	}
	for _, text := range d.status.Findings {
		d.say("finding", stateWarn, "", "%s", text)
	}
}

type wantedPort struct {
	portKey
	what   string
	needed bool // the server holds it while it runs
}

// other is a server of ours that holds a port although the one that was asked about
// does not run; "" for none.
func (d *doctor) other() string {
	for _, w := range d.wantedPorts() {
		for _, o := range d.ports[w.portKey] {
			if d.isOurs(o) {
				return o.String()
			}
		}
	}
	return ""
}

func (d *doctor) isOurs(o dhcp.Owner) bool {
	return o.Name == "recast" || o.Exe != "" && strings.TrimSuffix(o.Exe, " (deleted)") == d.ourExe
}

// wantedPorts are ours, and what for.
func (f *surroundings) wantedPorts() []wantedPort {
	proxy, served, six := false, false, false
	for _, p := range f.places {
		if p.Network.Subnet.Addr().Is6() {
			six = true
			continue
		}
		served = true
		proxy = proxy || p.Iface != nil && p.Network.DHCP == inventory.DHCPProxy
	}
	list := []wantedPort{{portKey{"udp", 67}, "DHCP", served}, {portKey{"udp", 69}, "TFTP", served || six}, {portKey{"udp", 4011}, "the boot server", proxy}}
	if six {
		list = append(list, wantedPort{portKey{"udp", 547}, "DHCPv6", true})
	}
	if n, err := portOf(f.config.Syslog); err == nil {
		list = append(list, wantedPort{portKey{"udp", n}, "syslog of machines", false})
	}
	for _, l := range []struct{ addr, what string }{{f.config.Boot, "boot HTTP"}, {f.config.Agent, "agents and operators"}} {
		if n, err := portOf(l.addr); err == nil {
			list = append(list, wantedPort{portKey{"tcp", n}, l.what, true})
		}
	}
	return list
}

func (d *doctor) portsCheck() {
	for _, w := range d.wantedPorts() {
		var ours, others, elsewhere []string
		for _, o := range d.ports[w.portKey] {
			switch {
			case d.isOurs(o):
				ours = appendNew(ours, o.String())
			case o.Addr.IsValid() && !o.Addr.IsUnspecified() && !d.inOurs(o):
				elsewhere = appendNew(elsewhere, fmt.Sprintf("%s, on %s alone", o, o.Addr))
			default:
				others = appendNew(others, o.String())
			}
		}
		name, stop := fmt.Sprintf("%s %d", w.proto, w.port), "stop that server, if it serves the same interface"
		switch {
		case len(ours) > 0 && len(others) > 0:
			d.say(name, stateWarn, stop, "%s: held by %s, and by %s", w.what, strings.Join(ours, ", "), strings.Join(others, ", "))
		case len(ours) > 0:
			d.say(name, stateOK, "", "%s: held by %s", w.what, strings.Join(ours, ", "))
		case len(others) > 0 && (w.needed || w.proto == "udp" && w.port != 4011 && d.set == nil):
			d.say(name, stateFail, "stop it (ss -lnp names its unit); recast needs the port", "%s: held by %s", w.what, strings.Join(others, ", "))
		case len(others) > 0:
			d.say(name, stateWarn, "stop it if a Network needs the port, or set another", "%s: held by %s", w.what, strings.Join(others, ", "))
		case d.running && w.needed:
			d.say(name, stateFail, "see the server's log for why, and restart it", "%s: nobody listens, although the server runs", w.what)
		case len(elsewhere) > 0:
			d.say(name, stateOK, "", "%s: free here; held by %s", w.what, strings.Join(elsewhere, ", "))
		case d.running:
			d.say(name, stateOK, "", "%s: not needed by any Network", w.what)
		default:
			d.say(name, stateOK, "", "%s: free", w.what)
		}
	}
}

func appendNew(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

// inOurs tells whether a socket's address is one that a Network is served from.
func (d *doctor) inOurs(o dhcp.Owner) bool {
	return d.set == nil || slices.ContainsFunc(d.places, func(p dhcp.Place) bool { return p.Network.Subnet.Contains(o.Addr) })
}

func (d *doctor) networks() {
	switch {
	case d.setErr != nil:
		d.say("networks", stateSkip, "name the files: recast doctor PATH", "they cannot be read: %v", d.setErr)
		return
	case d.set == nil:
		d.say("networks", stateSkip, "name the files: recast doctor PATH", "none is known")
		return
	case len(d.places) == 0:
		d.say("networks", stateWarn, "declare one with dhcp: authoritative or proxy, and apply", "none is served (%s)", d.setFrom)
		return
	}
	for i, p := range d.places {
		n := p.Network
		name := "net " + n.Name
		switch {
		case p.Problem != nil:
			d.say(name, stateFail, "", "%v", p.Problem)
			continue
		case p.Iface == nil && d.running && d.status.Relayed[n.Name] == 0:
			d.say(name, stateWarn, "point the relay of its switch (ip helper-address) at this host, or give the host an address in "+n.Subnet.String(),
				"no interface has an address in %s, and no relay has passed on a packet since the server's start", n.Subnet)
			continue
		case p.Iface == nil && d.running:
			d.say(name, stateOK, "", "reached through relays: %d packets since the server's start", d.status.Relayed[n.Name])
			continue
		case p.Iface == nil:
			d.say(name, stateWarn, "give the host an address there, unless a relay passes its packets on", "no interface has an address in %s", n.Subnet)
			continue
		case !p.Iface.Up:
			d.say(name, stateFail, "ip link set "+p.Iface.Name+" up", "its interface %s is down", p.Iface.Name)
			continue
		}
		d.say(name, stateOK, "", "dhcp: %s on %s as %s", n.DHCP, p.Iface.Name, p.Server)
		d.otherServers(p)
		if slices.ContainsFunc(d.places[:i], func(before dhcp.Place) bool { return before.Iface != nil && before.Iface.Name == p.Iface.Name }) {
			continue
		}
		if mtu := d.ifaces[p.Iface.Name]; mtu > 0 && mtu < ethernet {
			d.say("mtu", stateWarn, fmt.Sprintf("ip link set %s mtu %d", p.Iface.Name, ethernet), "%s of %s: TFTP's blocks and full TCP segments need %d", fmt.Sprint(mtu), p.Iface.Name, ethernet)
		} else if mtu > 0 {
			d.say("mtu", stateOK, "", "%d on %s", mtu, p.Iface.Name)
		}
	}
}

func (d *doctor) otherServers(p dhcp.Place) {
	n := p.Network
	const name = "other dhcp"
	seen, asked := d.others[n.Name]
	if err := d.otherErr[n.Name]; err != nil {
		d.say(name, stateSkip, "", "%s: %v", p.Iface.Name, err)
		return
	}
	if !asked {
		d.say(name, stateSkip, "run it as root, without --no-probe", "%s: nobody was asked", p.Iface.Name)
		return
	}
	var names []string
	for _, o := range seen {
		names = append(names, fmt.Sprintf("%s (%s), which offered %s", o.Server, o.MAC, o.Offer))
	}
	switch {
	case n.DHCP == inventory.DHCPProxy && len(seen) == 0:
		d.say(name, stateFail, "start that server, or declare dhcp: authoritative and apply", "%s: network %q has dhcp: proxy, and no other server gives addresses", p.Iface.Name, n.Name)
	case n.DHCP == inventory.DHCPProxy && len(seen) == 1:
		d.say(name, stateOK, "", "%s: %s, as dhcp: proxy wants", p.Iface.Name, names[0])
	case n.DHCP == inventory.DHCPProxy:
		d.say(name, stateWarn, "keep one of them", "%s: %s", p.Iface.Name, strings.Join(names, "; "))
	case len(seen) > 0 && n.Force:
		d.say(name, stateWarn, "stop it, or keep force: true if it is meant so", "%s: %s", p.Iface.Name, strings.Join(names, "; "))
	case len(seen) > 0:
		d.say(name, stateFail, "stop it, or declare dhcp: proxy on network "+n.Name, "%s: %s", p.Iface.Name, strings.Join(names, "; "))
	default:
		d.say(name, stateOK, "", "%s: no other server answered", p.Iface.Name)
	}
	if n.DHCP == inventory.DHCPAuthoritative && !d.managed[n.Name] {
		d.say("routers", stateWarn, "set its flag M (managed), or run a router there that does", "%s: no router sends hosts to DHCPv6, so that systems do not ask for an address", p.Iface.Name)
	}
}

func (d *doctor) firewall() {
	if d.rulesErr != nil {
		next := "see: nft list ruleset, iptables-save"
		if !d.root {
			next = "run it as root"
		}
		d.say("firewall", stateSkip, next, "%v", d.rulesErr)
		return
	}
	found := false
	for _, f := range d.flows() {
		for _, r := range d.rules {
			dropped, why := r.verdict(f.flow)
			if dropped == no {
				continue
			}
			found = true
			state, verb := stateFail, "drops"
			if dropped == perhaps {
				state, verb = stateWarn, "may drop"
			}
			d.say("firewall", state, "allow "+f.String()+f.on(), "it %s %s (%s)%s: %s", verb, f.flow, f.what, f.on(), why)
		}
	}
	if !found {
		d.say("firewall", stateOK, "", "no rule of this host drops what machines send")
	}
}

type wantedFlow struct {
	flow
	what string
}

// flows are what machines send first, on each interface by the addresses of its
// Networks.
func (d *doctor) flows() (list []wantedFlow) {
	type link struct {
		iface string
		six   bool
	}
	var links []link
	for _, p := range d.places {
		if p.Iface == nil {
			continue
		}
		if l := (link{p.Iface.Name, p.Network.Subnet.Addr().Is6()}); !slices.Contains(links, l) {
			links = append(links, l)
		}
	}
	if len(links) == 0 {
		links = []link{{"", false}}
	}
	for _, l := range links {
		if l.six {
			list = append(list, wantedFlow{flow{l.iface, true, protoND, 0}, "who has the server's address"})
		}
		for _, w := range d.wantedPorts() {
			if !w.needed && d.set != nil || l.six && (w.port == 67 || w.port == 4011) || !l.six && w.port == 547 {
				continue
			}
			list = append(list, wantedFlow{flow{l.iface, l.six, w.proto, w.port}, w.what})
		}
	}
	return list
}

func (d *doctor) host() {
	switch free := inventory.SizeText(int64(min(d.freeBytes, math.MaxInt64))); {
	case d.freeErr != nil:
		d.say("space", stateFail, "", "%s: %v", d.config.Data, d.freeErr)
	case d.freeBytes < leastFree:
		d.say("space", stateFail, "make room: recast get images, recast image remove", "%s has %s free", d.config.Data, free)
	case d.freeBytes < roomFree:
		d.say("space", stateWarn, "make room: recast get images, recast image remove", "%s has %s free, little more than an image", d.config.Data, free)
	default:
		d.say("space", stateOK, "", "%s has %s free", d.config.Data, free)
	}
	switch {
	case d.now.Year() < 2026:
		d.say("clock", stateFail, "set it, and run an NTP client", "it says %s: certificates are not valid yet", dateClock(d.now))
	case d.syncErr != nil:
		d.say("clock", stateSkip, "", "%s; whether it is synchronised cannot be told: %v", dateClock(d.now), d.syncErr)
	case !d.synced:
		d.say("clock", stateWarn, "run an NTP client (systemd-timesyncd, chrony): machines set their clock by it", "%s, and not synchronised", dateClock(d.now))
	default:
		d.say("clock", stateOK, "", "%s, synchronised", dateClock(d.now))
	}
	for _, name := range slices.Sorted(maps.Keys(d.lacking)) {
		why := "to start from a virtual medium (boot.via: media)"
		switch name {
		case ipxe.LoaderShimAMD64, ipxe.LoaderGRUBAMD64:
			why = "secureBoot"
		case ipxe.LoaderLocalBIOS, ipxe.LoaderLocalAMD64:
			why = "to start their own disk by it (boot.local)"
		}
		d.say("loaders", stateFail, ipxe.LoaderCure(name), "%s is missing: machines that are declared %s: %s", name, why, strings.Join(d.lacking[name], ", "))
	}
	switch {
	case d.loaders != nil:
		d.say("loaders", stateWarn, "", "%v", d.loaders)
	case d.version == "":
		d.say("loaders", stateOK, "", "those of this host's ipxe package")
	case strings.HasPrefix(d.version, oldLoader):
		d.say("loaders", stateWarn, "sudo ./setup.sh loaders, and build again", "iPXE %s is from before 2.0: no HTTPS in Debian's build of 2019, known hangs", d.version)
	default:
		d.say("loaders", stateOK, "", "iPXE %s", d.version)
	}
	switch {
	case errors.Is(d.ramdisk, fs.ErrNotExist):
		d.say("ramdisk", stateWarn, "recast ramdisk build", "%s holds none: machines get an address and boot what they have", d.config.ramdiskDir())
	case errors.Is(d.ramdisk, fs.ErrPermission):
		d.say("ramdisk", stateSkip, "run it as root", "%v", d.ramdisk)
	case d.ramdisk != nil:
		d.say("ramdisk", stateFail, "", "%v", d.ramdisk)
	default:
		for _, r := range d.ramdisks { // one architecture is enough
			d.say("ramdisk", stateOK, "", "%s, kernel %s", r.Arch, r.KernelVersion)
		}
	}
}

func (d *doctor) certificates() {
	switch {
	case !d.running:
		return // it makes its certificate when it starts
	case d.chainErr != nil:
		d.say("certificate", stateFail, "see the server's log", "%v", d.chainErr)
		return
	}
	for _, c := range d.chain {
		what, next := "the server's", "restart the server: it makes a new one"
		if c.IsCA {
			what, next = "the CA's", "a new CA needs every machine written anew: plan it now"
		}
		left := c.NotAfter.Sub(d.now)
		switch {
		case d.now.Before(c.NotBefore):
			d.say("certificate", stateFail, "set the clock", "%s is valid from %s", what, dateClock(c.NotBefore))
		case left <= 0:
			d.say("certificate", stateFail, next, "%s ended %s", what, dateClock(c.NotAfter))
		case left < certSoon || c.IsCA && left < 12*certSoon:
			d.say("certificate", stateWarn, next, "%s ends %s", what, dateClock(c.NotAfter))
		default:
			d.say("certificate", stateOK, "", "%s ends %s", what, dateClock(c.NotAfter))
		}
	}
}
