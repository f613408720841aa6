package dhcp

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"recast/inventory"
	"recast/ipxe"
)

const (
	clientPort = 68
	serverPort = 67

	// offerHold is how long an offered address is kept: the slowest clients ask
	// for it within their own retry time, 16 s.
	offerHold = 30 * time.Second
	// quarantine of an address that a client found in use (DECLINE).
	quarantine = 10 * time.Minute
	// defaultLease serves a Network that names none.
	defaultLease = time.Hour
	// strangersLease is the longest of a client that nobody declares: a machine whose
	// kept address strangers had before it was declared waits no longer than that, and
	// each of them renews every seven minutes, which is still nothing.
	strangersLease = 15 * time.Minute
	// fullPause is how long a pool that was searched in vain is not searched again.
	fullPause = time.Second
)

// boot is what the client shall load; the zero value means just an address.
type boot struct {
	file  string // TFTP name, or URL for iPXE
	trace string // of the attempt; "" none
	// log is where iPXE may log to, from before it has a script; zero: nowhere.
	log netip.Addr
}

// question is everything the answer to one packet depends on, but the leases.
type question struct {
	req     *request
	network *inventory.Network
	onLink  bool           // the Network is the link the packet came in on
	unicast bool           // sent to our own address
	asker   netip.AddrPort // where a packet to the boot server port came from
	from    uint16         // the port that any other came from; 0: not known
	server  netip.Addr     // our address on that link: the server identifier
	ours    []netip.Addr   // all addresses we answer from
	cfg     *config
	port    declared // who it is by its switch port, where its hardware address is not declared
	boot    boot
	duid    []byte // ours
	now     time.Time

	declared *declared // by its hardware address; nil for none
	looked   bool
}

// byMAC is what the client's hardware address is declared as, nil for nothing.
func (q *question) byMAC() *declared {
	if !q.looked {
		q.looked, q.declared = true, q.cfg.byMAC[q.req.mac]
	}
	return q.declared
}

// own is what the client is declared as; false for a stranger.
func (q *question) own() (declared, bool) {
	if d := q.byMAC(); d != nil {
		return *d, true
	}
	return q.port, q.port.machine != ""
}

// outcome is what to do about one packet. Either silence says why nothing is
// sent, or packet goes to dest; the changes of the lease table come first in
// both cases.
type outcome struct {
	silence string
	packet  *packet4
	six     *answer6 // the packet of DHCPv6
	dest    dest

	offer  netip.Addr       // keep this address for the client for offerHold
	forget bool             // drop what was offered to the client
	lease  *inventory.Lease // bind (or quarantine) this address …
	drop   netip.Addr       // … and delete the client's record of this one

	detail  string // for the observation
	finding string // what a person should know
}

// dest says where a reply goes. With hw it is sent to that hardware address
// without ARP, since the client does not have the address yet.
type dest struct {
	to         netip.AddrPort
	hw         net.HardwareAddr
	bootServer bool // from port 4011, where the question was
}

var broadcast = netip.AddrPortFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), clientPort)

func silent(why string) outcome { return outcome{silence: why} }

// Reasons for silence that others decide on.
const (
	silenceIgnored   = "unknown machine"
	silenceExhausted = "no free address"
	silenceUnloaded  = "leases not read yet"
	silenceSelected  = "no Network on the link that its relay selects"
	silenceSubnet    = "no Network in the subnet that it selects"
)

// reply decides the answer to one packet (RFC 2131 §4.3). It reads the lease
// table, whose lock the caller holds, and changes nothing.
func reply(q question, t *table) outcome {
	own, known := q.own()
	if !known {
		switch q.network.Unknown {
		case inventory.UnknownLocal, inventory.UnknownDiscover:
		default:
			return silent(silenceIgnored)
		}
	}
	switch {
	case q.network.DHCP == inventory.DHCPProxy:
		return q.proxy()
	case q.asker.IsValid():
		return silent("not a boot server here")
	}
	// Without the leases a pool address could be somebody else's; a declared one cannot.
	if a := own.on(q.network); !t.loaded && (!a.IsValid() || q.weAre(a)) {
		return silent(silenceUnloaded)
	}
	if q.req.six != nil {
		return q.reply6(t)
	}
	switch q.req.kind {
	case dhcpv4.MessageTypeDiscover:
		return q.discover(t)
	case dhcpv4.MessageTypeRequest:
		return q.request(t)
	case dhcpv4.MessageTypeDecline:
		return q.decline(t)
	case dhcpv4.MessageTypeRelease:
		return q.release(t)
	case dhcpv4.MessageTypeInform:
		return q.inform()
	}
	return silent(string(badType))
}

func (q *question) discover(t *table) outcome {
	a, finding := q.choose(t)
	if !a.IsValid() {
		o := silent(silenceExhausted)
		o.finding = finding
		return o
	}
	p := q.answer(dhcpv4.MessageTypeOffer)
	p.YourIPAddr = bytes4(a)
	q.addLease(p)
	q.addNetwork(p)
	q.addBoot(p)
	q.fit(p)
	return outcome{packet: p, dest: q.destination(p, a), offer: a, finding: finding, detail: q.boot.file}
}

func (q *question) request(t *table) outcome {
	r := q.req
	switch {
	case r.serverID.IsValid() && r.requested.IsValid(): // SELECTING
		if !q.isOurs(r.serverID) {
			return outcome{silence: "another server was chosen", forget: true}
		}
		switch {
		case q.allowed(t, r.requested):
			return q.ack(t, r.requested)
		case q.network.Subnet.Contains(r.requested):
			return q.nak(fmt.Sprintf("%s is not free for this machine", r.requested))
		}
		return silent("address outside the subnet")

	case r.requested.IsValid() && !r.ciaddr.IsValid(): // INIT-REBOOT
		return q.confirm(t, r.requested, false)

	case r.ciaddr.IsValid(): // RENEWING (unicast) and REBINDING (broadcast)
		if r.serverID.IsValid() && !q.isOurs(r.serverID) {
			return silent("another server was chosen")
		}
		// A pool address we have no record of is taken back: the client got it
		// from us before the lease table was lost.
		return q.confirm(t, r.ciaddr, true)
	}
	return silent("request without an address")
}

// confirm answers a client that already believes in an address. We say no only
// inside our own subnet and where a record of ours says otherwise; a client
// nobody here knows may have its address from elsewhere and hears nothing.
func (q *question) confirm(t *table, a netip.Addr, adopt bool) outcome {
	if !q.network.Subnet.Contains(a) {
		return silent("address outside the subnet")
	}
	own, known := t.lease(q.network.Name, q.req.mac)
	d, _ := q.own()
	reservation := d.on(q.network)
	reserved := reservation.IsValid()
	mine := reserved && reservation == a || known && own.Addr == a
	if q.allowed(t, a) && (mine || adopt) {
		return q.ack(t, a)
	}
	_, held := t.holder(q.network.Name, a, q.now)
	_, others := q.cfg.reserved[a]
	switch {
	case reserved && reservation != a:
		return q.nak(fmt.Sprintf("this machine's address is %s", reservation))
	case mine, held, others:
		return q.nak(fmt.Sprintf("%s is not free for this machine", a))
	case known:
		return q.nak(fmt.Sprintf("this machine's address is %s", own.Addr))
	}
	return silent("no record of this address")
}

func (q *question) ack(t *table, a netip.Addr) outcome {
	p := q.answer(dhcpv4.MessageTypeAck)
	p.YourIPAddr = bytes4(a)
	p.ClientIPAddr = bytes4(q.req.ciaddr)
	q.addLease(p)
	q.addNetwork(p)
	q.addBoot(p)
	q.fit(p)
	o := outcome{packet: p, dest: q.destination(p, a), detail: q.boot.file}
	q.bind(t, a, &o)
	return o
}

// bind promises the address to the client, and takes its other one back.
func (q *question) bind(t *table, a netip.Addr, o *outcome) {
	o.lease = q.lease(a, inventory.LeaseBound, q.leaseTime())
	o.lease.Hostname = q.req.hostname
	if port := q.req.port; port.Circuit != "" {
		o.lease.Port = &port
	}
	if old, ok := t.lease(q.network.Name, q.req.mac); ok {
		if old.Addr != a {
			o.drop = old.Addr
		}
		if o.lease.Hostname == "" { // firmware has none, and does not take away the system's
			o.lease.Hostname = old.Hostname
		}
		if o.lease.Port == nil { // a renewal goes past the relay
			o.lease.Port = old.Port
		}
	}
}

// lease is a record of the client's.
func (q *question) lease(a netip.Addr, state inventory.LeaseState, d time.Duration) *inventory.Lease {
	own, _ := q.own()
	return &inventory.Lease{Network: q.network.Name, Addr: a, MAC: q.req.mac, Machine: own.machine, BMC: own.bmc,
		State: state, Expires: q.now.Add(d)}
}

func (q *question) nak(why string) outcome {
	p := q.answer(dhcpv4.MessageTypeNak)
	p.Options.Put(dhcpv4.OptionMessage, []byte(why))
	d := dest{to: broadcast}
	switch {
	case q.req.giaddr.IsValid():
		// The relay must broadcast it: the client has no valid address (§4.3.2).
		p.Flags |= flagBroadcast
		d.to = q.relay()
	case !q.onLink && q.req.ciaddr.IsValid():
		// A broadcast would stay on the wrong link.
		d.to = netip.AddrPortFrom(q.req.ciaddr, clientPort)
	}
	return outcome{packet: p, dest: d, forget: true, detail: why}
}

func (q *question) decline(t *table) outcome {
	r := q.req
	if r.serverID.IsValid() && !q.isOurs(r.serverID) {
		return silent("another server was chosen")
	}
	a := r.requested
	h, held := t.holder(q.network.Name, a, q.now)
	own, _ := q.own()
	reserved := a.IsValid() && own.on(q.network) == a
	if !a.IsValid() || !q.network.Subnet.Contains(a) || held && h.mac != r.mac || !held && !reserved {
		return silent("not its address")
	}
	o := outcome{silence: "declined", forget: true}
	o.lease = q.lease(a, inventory.LeaseDeclined, quarantine)
	o.detail = fmt.Sprintf("%s is in use by another device", a)
	if reserved {
		o.finding = q.inUse(a)
	}
	return o
}

// inUse is the finding of a reserved address that a stranger's device answers on.
func (q *question) inUse(a netip.Addr) string {
	find := fmt.Sprintf("arping %s", a)
	if a.Is6() {
		find = fmt.Sprintf("ping -c1 %s; ip neigh show %s", a, a)
	}
	own, _ := q.own()
	return fmt.Sprintf("network %q: %s, reserved for %s, is in use by another device; find it with %q and remove it",
		q.network.Name, a, own, find)
}

func (q *question) release(t *table) outcome {
	r := q.req
	if r.serverID.IsValid() && !q.isOurs(r.serverID) {
		return silent("another server was chosen")
	}
	own, ok := t.lease(q.network.Name, r.mac)
	if !ok || own.Addr != r.ciaddr {
		return silent("not its address")
	}
	if own.bound.After(q.now) {
		return silent("released") // and taken again before that was stored
	}
	return outcome{silence: "released", forget: true, drop: r.ciaddr}
}

func (q *question) inform() outcome {
	if !q.req.ciaddr.IsValid() || !q.network.Subnet.Contains(q.req.ciaddr) {
		return silent("inform without an address of the subnet")
	}
	p := q.answer(dhcpv4.MessageTypeAck)
	p.ClientIPAddr = bytes4(q.req.ciaddr)
	q.addNetwork(p)
	q.fit(p)
	return outcome{packet: p, dest: dest{to: netip.AddrPortFrom(q.req.ciaddr, clientPort)}}
}

// choose picks the address to offer: the reservation, what the machine had
// before, what it asks for, else the first free one from its home slot on.
// Without any it says what a person should know.
func (q *question) choose(t *table) (netip.Addr, string) {
	n, mac := q.network, q.req.mac
	finding := ""
	d, known := q.own()
	if a := d.on(n); a.IsValid() {
		if q.reservationFree(t, a) {
			return a, ""
		}
		// Another address lets it boot while the conflict lasts.
		switch h, _ := t.holder(n.Name, a, q.now); {
		case q.weAre(a):
			finding = fmt.Sprintf("network %q: %s, reserved for %s, is this server's own address, which nobody gets: give it another in its file and apply", n.Name, a, d)
		case h.quarantined:
			finding = q.inUse(a)
		default:
			finding = fmt.Sprintf("network %q: %s, reserved for %s, is still leased to %s; it becomes free when that one renews", n.Name, a, d, h.mac)
		}
	}
	if old, ok := t.lease(n.Name, mac); ok && q.poolFree(t, old.Addr) {
		return old.Addr, finding
	}
	if a, ok := t.offered[station{n.Name, mac}]; ok && q.poolFree(t, a) {
		return a, finding
	}
	if a := q.req.requested; a.IsValid() && q.poolFree(t, a) {
		return a, finding
	}
	size := slots(n.Pool)
	if size == 0 {
		if finding == "" {
			finding = fmt.Sprintf("network %q: no address for %s: declare its ip, or a pool", n.Name, mac)
		}
		return netip.Addr{}, finding
	}
	// A flood of strangers searches once in a while; who is declared always does.
	if known || q.now.Sub(t.full[n.Name]) >= fullPause || q.now.Before(t.full[n.Name]) {
		first := home(mac, size)
		for i := range size {
			if a := slot(n.Pool, (first+i)%size); q.poolFree(t, a) {
				return a, finding
			}
		}
	}
	if known && finding == "" {
		finding = q.waits(t)
	}
	if finding == "" {
		but := ""
		if keep := q.cfg.kept[n.Name]; keep > 0 && !known {
			but = fmt.Sprintf(", but for %d that are kept for declared machines without one of their own", keep)
		}
		finding = fmt.Sprintf("network %q: every address of the pool %s-%s is taken%s; make it larger or leaseTime shorter", n.Name, n.Pool.First, n.Pool.Last, but)
	}
	return netip.Addr{}, finding
}

// waits is the finding of a declared machine whose kept address strangers still
// have, from before it was declared; "" where none do.
func (q *question) waits(t *table) string {
	n, keep := q.network, q.cfg.kept[q.network.Name]
	var first, last time.Time
	for i := range keep {
		r := t.byAddr[place{n.Name, slot(n.Pool, slots(n.Pool)-1-i)}]
		if r == nil || r.Machine != "" || r.State != inventory.LeaseBound || !q.now.Before(r.Expires) || q.cfg.byMAC[r.MAC] != nil {
			continue
		}
		if first.IsZero() || r.Expires.Before(first) {
			first = r.Expires
		}
		if r.Expires.After(last) {
			last = r.Expires
		}
	}
	if first.IsZero() {
		return ""
	}
	at := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	return fmt.Sprintf("network %q: every address of the pool %s-%s is taken, those kept for declared machines by strangers from before; these cannot renew them: the first becomes free by %s, the last by %s; make the pool larger, or wait",
		n.Name, n.Pool.First, n.Pool.Last, at(first), at(last))
}

// allowed reports whether the client may have the address now.
func (q *question) allowed(t *table, a netip.Addr) bool {
	d, _ := q.own()
	if own := d.on(q.network); own.IsValid() && q.reservationFree(t, own) {
		return a == own
	}
	return q.poolFree(t, a)
}

// reservationFree reports whether nobody else, us included, sits on the declared address. A
// lease of the same machine under another hardware address is a replaced card.
func (q *question) reservationFree(t *table, a netip.Addr) bool {
	if q.weAre(a) {
		return false
	}
	d, _ := q.own()
	h, held := t.holder(q.network.Name, a, q.now)
	return !held || !h.quarantined && (h.mac == q.req.mac || h.machine == d.machine && h.bmc == d.bmc || h.offerOnly)
}

// poolFree reports whether an address may be given to the client from the pool.
func (q *question) poolFree(t *table, a netip.Addr) bool {
	n := q.network
	if n.Pool == nil || !n.Pool.Contains(a) || !n.Subnet.Contains(a) || a == n.Gateway || q.isOurs(a) {
		return false
	}
	// Not IPv6's subnet-router anycast address either (RFC 4291 §2.6.1).
	if n.Subnet.Bits() < a.BitLen()-1 && (a == n.Subnet.Masked().Addr() || a.Is4() && a == lastAddr(n.Subnet)) {
		return false
	}
	if _, taken := q.cfg.reserved[a]; taken {
		return false
	}
	_, known := q.own()
	if !known && isKept(n, a, q.cfg.kept[n.Name]) {
		return false
	}
	switch h, held := t.holder(n.Name, a, q.now); {
	case held && h.quarantined:
		return false
	case held && !h.offerOnly:
		return h.mac == q.req.mac
	case held && h.mac != q.req.mac && (h.declared || !known):
		// Strangers who were only offered an address never keep a declared machine waiting.
		return false
	}
	return !t.inUse(n.Name, a, q.req.mac, q.now)
}

// isOurs reports whether a server identifier means us.
func (q *question) isOurs(id netip.Addr) bool { return id == q.req.override || q.weAre(id) }

// weAre reports whether an address is this server's own.
func (q *question) weAre(a netip.Addr) bool { return a == q.server || slices.Contains(q.ours, a) }

// leaseTime is how long the client is promised an address.
func (q *question) leaseTime() time.Duration {
	if _, known := q.own(); !known {
		return strangersTime(q.network)
	}
	return leaseTime(q.network)
}

func strangersTime(n *inventory.Network) time.Duration { return min(leaseTime(n), strangersLease) }

func leaseTime(n *inventory.Network) time.Duration {
	if d := time.Duration(n.LeaseTime); d > 0 {
		return d
	}
	return defaultLease
}

// relay is where the relay hears answers.
func (q *question) relay() netip.AddrPort {
	if q.req.ownPort && q.from != 0 {
		return netip.AddrPortFrom(q.req.giaddr, q.from)
	}
	return netip.AddrPortFrom(q.req.giaddr, serverPort)
}

// destination of an OFFER or ACK (RFC 2131 §4.1).
func (q *question) destination(p *packet4, a netip.Addr) dest {
	r := q.req
	switch {
	case r.giaddr.IsValid():
		return dest{to: q.relay()}
	// Only to the address that the reply confirms: a DISCOVER, or a REQUEST that
	// takes an offer, has none yet, and one that claims to would let anybody aim
	// our replies.
	case r.ciaddr == a && r.kind != dhcpv4.MessageTypeDiscover:
		return dest{to: netip.AddrPortFrom(r.ciaddr, clientPort)}
	case p.Flags&flagBroadcast != 0:
		return dest{to: broadcast}
	}
	return dest{to: netip.AddrPortFrom(a, clientPort), hw: r.ClientHWAddr}
}

// canBoot reports whether the kind of client takes the file: firmware PXE does
// not understand a URL and HTTP Boot must never get a TFTP name.
func canBoot(loader ipxe.LoaderKind, file string) bool {
	url := strings.Contains(file, "://")
	switch loader {
	case ipxe.LoaderFirmware:
		return file != "" && !url
	case ipxe.LoaderHTTP:
		return url
	case ipxe.LoaderIPXE:
		return file != ""
	}
	return false
}

// lastAddr is the broadcast address of a subnet.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(b)
}
