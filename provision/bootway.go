package provision

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"recast/bmc"
	"recast/inventory"
	"recast/ipxe"
)

// BMCOffers are the ways to boot that a machine's BMC showed when it was asked last.
type BMCOffers struct {
	URL string `json:"url"` // whose they are; another one has to show its own
	bmc.Offers
	At time.Time `json:"at"`
}

// Offered: its BMC was asked what it offers.
type Offered struct {
	URL    string
	Offers bmc.Offers
}

func (Offered) event() {}

func (t *transition) offered(ev Offered) {
	t.Status.Offers = &BMCOffers{URL: ev.URL, Offers: ev.Offers, At: t.now}
}

// needOf says in words what a BMC must offer for a boot, and whether it does.
func needOf(via inventory.BootVia, o bmc.Offers) (what string, offered bool) {
	if via == inventory.BootMedia {
		return "a virtual CD drive to boot from", o.Media
	}
	return "UEFI HTTP Boot from an address that it is told (HttpBootUri)", o.HTTPBoot
}

// bootWay judges how a machine is declared to boot, against what its group asks for and
// what its BMC showed: never is a refusal until something is changed, later a wait.
func bootWay(m *inventory.Machine, w Wanted, seen *BMCOffers) (never, later Wait) {
	via := m.Boot.Via
	if d := w.Definition; d != nil && d.Identity == inventory.L1 {
		const media = "declare boot: {via: media} for it and apply"
		switch {
		case via == "":
			return Wait{fmt.Sprintf("it boots from the network, where its hardware address is all that is known of it (identity L0), and definition %q wants L1", d.Name), media}, Wait{}
		case via == inventory.BootHTTP && len(w.Generation.Resolved.Secrets) > 0:
			return Wait{fmt.Sprintf("its one-time token goes over plain HTTP, where a listener reads it, and definition %q wants L1 and holds secrets", d.Name), media}, Wait{}
		}
	}
	if via == "" || m.BMC == nil {
		return Wait{}, Wait{}
	}
	if seen == nil || seen.URL != m.BMC.URL {
		what, _ := needOf(via, bmc.Offers{})
		return Wait{}, Wait{"its BMC has not shown yet whether it offers " + what, "it is asked by itself"}
	}
	if what, offered := needOf(via, seen.Offers); !offered {
		return Wait{"its BMC does not offer " + what, "declare another boot.via for it and apply; after a change to its BMC or licence it is asked again by itself"}, Wait{}
	}
	return Wait{}, Wait{}
}

// httpWarning is what a plan says of a token that anybody on the way can read.
const httpWarning = "by HTTP Boot with a one-time token over plain HTTP: that stops a spoofed hardware address, not a listener"

const (
	// offersEvery is how often a BMC that lacks something is asked again, and
	// offersAgain one that did not answer.
	offersEvery = 10 * time.Minute
	offersAgain = 30 * time.Second
)

// bootWayNow is bootWay of an applied machine. It sees to it that its BMC is asked.
func (e *Engine) bootWayNow(decl *inventory.Machine, w Wanted) Wait {
	m := e.machine(decl.Name)
	seen := m.snapshot().Status.Offers
	never, later := bootWay(decl, w, seen)
	if decl.Boot.Via == "" || decl.BMC == nil {
		return never
	}
	asked := seen != nil && seen.URL == decl.BMC.URL
	if !asked || never != (Wait{}) && e.Now().Sub(seen.At) >= offersEvery {
		e.askOffers(m, decl.BMC.URL)
	}
	if never != (Wait{}) {
		return never
	}
	if why := m.offersErr.Load(); later != (Wait{}) && why != nil {
		later.Why += ": " + *why
	}
	return later
}

// askOffers asks a BMC in the background, one question at a time.
func (e *Engine) askOffers(m *machine, url string) {
	now := e.Now()
	if due := m.offersDue.Load(); now.UnixNano() < due || !m.offersDue.CompareAndSwap(due, now.Add(offersAgain).UnixNano()) {
		return
	}
	e.spawn(func() {
		ctx, cancel := context.WithTimeout(e.background(), lookTime)
		defer cancel()
		m.bmcMu.Lock()
		defer m.bmcMu.Unlock()
		var o bmc.Offers
		err := e.withBMC(ctx, m.name, func(ctx context.Context, c bmc.Client) (err error) {
			if asked, ok := c.(bmc.Offerer); ok {
				o, err = asked.Offers(ctx)
			}
			return err
		})
		if err != nil {
			why := err.Error()
			m.offersErr.Store(&why)
			return
		}
		m.offersErr.Store(nil)
		if err := e.handle(ctx, m, Offered{URL: url, Offers: o}); err != nil {
			e.Log.Warn("what a BMC offers is not recorded", "machine", m.name, "err", err)
		}
		e.nudge()
	})
}

// armWords says in words what ActArm did.
func armWords(via inventory.BootVia) string {
	switch via {
	case inventory.BootMedia:
		return "insert the virtual medium and set boot from it"
	case inventory.BootHTTP:
		return "set UEFI HTTP Boot from a one-time address"
	}
	return string(ActArm)
}

// bootsNext is what is awaited after power on.
func bootsNext(via inventory.BootVia) string {
	switch via {
	case inventory.BootMedia:
		return "its firmware starts the virtual medium, which fetches the ramdisk"
	case inventory.BootHTTP:
		return "its firmware loads from its one-time address"
	}
	return "its firmware asks for a network boot"
}

// arm makes the machine's next start one from us.
func (e *Engine) arm(ctx context.Context, decl *inventory.Machine, c bmc.Client, s State, uefi bool) error {
	if s.Intent == nil || s.Intent.Via == "" {
		return c.SetNextBoot(ctx, bmc.NextBoot{Device: bmc.BootNetwork, UEFI: uefi})
	}
	if decl.Boot.Via != s.Intent.Via {
		return fmt.Errorf("it is not declared any more to boot via %s", s.Intent.Via)
	}
	token := e.key.OnceToken(s.Intent)
	if s.Intent.Via == inventory.BootHTTP {
		server, err := e.bootServer(decl)
		if err != nil {
			return err
		}
		at, err := e.OnceLoader(token, decl)
		if err != nil {
			return err
		}
		return hide(token, c.SetNextBoot(ctx, bmc.NextBoot{Device: bmc.BootHTTP, UEFI: true, URI: "http://" + server.String() + at}))
	}
	media, ok := c.(bmc.Media)
	if !ok {
		return fmt.Errorf("insert virtual media: %w", bmc.ErrUnsupported)
	}
	u, err := url.Parse(decl.BMC.URL)
	if err != nil {
		return fmt.Errorf("insert virtual media: %w", err)
	}
	from, ok := e.Towards(u.Hostname())
	if !ok {
		return fmt.Errorf("insert virtual media: no address of ours is reached from its BMC %s", u.Hostname())
	}
	server := netip.AddrPortFrom(from, uint16(e.BootPort))
	if err := media.InsertMedia(ctx, "http://"+server.String()+ipxe.DiscPath(token)); err != nil {
		return hide(token, err)
	}
	return hide(token, c.SetNextBoot(ctx, bmc.NextBoot{Device: bmc.BootCD, UEFI: uefi}))
}

// hiddenError is an error in whose text a token may stand.
type hiddenError struct {
	error
	token string
}

func (h hiddenError) Error() string { return strings.ReplaceAll(h.error.Error(), h.token, "…") }
func (h hiddenError) Unwrap() error { return h.error }

func hide(token string, err error) error {
	if err == nil {
		return nil
	}
	return hiddenError{err, token}
}

// disarm takes back what arm did, as far as it still stands.
func disarm(ctx context.Context, c bmc.Client, s State, uefi bool) error {
	next, err := c.NextBoot(ctx)
	if err == nil && next.Device != bmc.BootDefault {
		err = c.SetNextBoot(ctx, bmc.NextBoot{Device: bmc.BootDefault, UEFI: uefi})
	}
	if s.Intent == nil || s.Intent.Via != inventory.BootMedia {
		return err
	}
	if media, ok := c.(bmc.Media); ok {
		err = errors.Join(err, media.EjectMedia(ctx))
	}
	return err
}

// bootServer is our boot listener as the machine reaches it.
func (e *Engine) bootServer(decl *inventory.Machine) (netip.AddrPort, error) {
	network := ""
	if len(decl.NICs) > 0 {
		network = decl.NICs[0].Network
	}
	addr, ok := e.Address(network)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("no address of ours is reached from network %q", network)
	}
	return netip.AddrPortFrom(addr, uint16(e.BootPort)), nil
}

// OnceToken stands in the address that a BMC is told for one boot. It holds until
// that boot has claimed, or until the fence rises.
func (k Key) OnceToken(in *Intent) string {
	return in.Machine + "." + k.sum("once", string(in.Purpose), string(in.Via), in.Epoch, in.Machine, strconv.FormatInt(in.Fence, 10))
}

var errNoToken = errors.New("the token is not that of a boot under way")

// tokenBoot finds the boot that a one-time token was made for.
func (e *Engine) tokenBoot(token string) (*inventory.Machine, State, error) {
	m, ok := e.known(tokenMachine(token))
	if !ok {
		return nil, State{}, errNoToken
	}
	s := m.committed()
	in := s.Intent
	if in == nil || !in.Live || in.Via == "" || in.Epoch != e.Store.Epoch() || !mayBoot(s.Status.Step) || !sameToken(token, e.key.OnceToken(in)) {
		return nil, s, errNoToken
	}
	// A disc is read on for a while; what it can do is done.
	if in.Via == inventory.BootHTTP && in.Boots > 0 {
		return nil, s, errNoToken
	}
	decl := e.Set().Machine(m.name)
	if decl == nil || decl.Boot.Via != in.Via || len(decl.NICs) == 0 {
		return nil, s, errNoToken
	}
	return decl, s, nil
}

// Once is what a one-time token leads to, for the boot listener.
func (e *Engine) Once(_ context.Context, token string) (ipxe.Once, error) {
	decl, s, err := e.tokenBoot(token)
	if err != nil {
		return ipxe.Once{}, err
	}
	nic := decl.NICs[0]
	o := ipxe.Once{Machine: decl.Name, MAC: nic.MAC, Via: s.Intent.Via, Arch: decl.Arch, VLAN: nic.VLAN}
	if o.Server, err = e.bootServer(decl); err != nil || o.Via != inventory.BootMedia {
		return o, err
	}
	net := e.Set().Network(nic.Network)
	if net == nil {
		return o, fmt.Errorf("there is no network %q", nic.Network)
	}
	o.Static = inventory.Static{Address: netip.PrefixFrom(nic.IP, net.Subnet.Bits()), Gateway: net.Gateway, DNS: net.DNS}
	c := ipxe.Client{MAC: nic.MAC, Loader: ipxe.LoaderIPXE, Arch: ipxe.FirmwareX64UEFI}
	if decl.Arch == inventory.ARM64 {
		c.Arch = ipxe.FirmwareARM64UEFI
	}
	in := s.Intent
	// Everything here is of the time when the fence was opened, and stays so.
	q := bootQuestion{Client: c, Machine: decl, State: s, VLAN: nic.VLAN, Key: e.key, Epoch: in.Epoch, Arch: decl.Arch,
		AgentURL: agentURL(o.Server.Addr(), e.AgentPort), CA: e.authority.Digest(), Ramdisk: e.Ramdisk(decl.Arch), Now: in.Opened}
	if e.SyslogPort != 0 {
		q.Syslog = netip.AddrPortFrom(o.Server.Addr(), uint16(e.SyslogPort))
	}
	q.Static = staticArgs(o.Static, net.Routes)
	o.Spec = ramdisk(q, decl.Name, nonceArg+e.key.Nonce(in, 0), fmt.Sprintf("%s, attempt %d", in.Purpose, s.Status.Attempt))
	o.Spec.Syslog = q.Syslog
	return o, nil
}

// staticArgs tell the ramdisk its address.
func staticArgs(s inventory.Static, routes []inventory.Route) []string {
	args := []string{"recast.ip=" + s.Address.String()}
	if s.Gateway.IsValid() {
		args = append(args, fmt.Sprintf("recast.route=0.0.0.0/0,%s", s.Gateway))
	}
	for _, r := range routes {
		args = append(args, fmt.Sprintf("recast.route=%s,%s", r.To, r.Via))
	}
	return args
}

// identityPrefix begins the finding of identityOf.
const identityPrefix = "identity: "

// identityOf holds what a claim says of its machine against what the BMC says, which
// the boot came through. why is what keeps it from L1.
func identityOf(in *Intent, uuid, serial string) (is inventory.Identity, why string) {
	board := in.Board
	switch {
	case in.Via == "":
		return inventory.L0, ""
	case board == nil || board.UUID == "" && board.Serial == "":
		return inventory.L0, "its BMC tells neither UUID nor serial of its board"
	case board.UUID != "" && inventory.UsableUUID(uuid) && sameUUID(uuid, board.UUID):
	case board.Serial != "" && board.Serial == serial:
	default:
		return inventory.L0, fmt.Sprintf("the machine says UUID %q serial %q, its BMC %q %q: where bmc.url names another machine's BMC, correct it", uuid, serial, board.UUID, board.Serial)
	}
	return inventory.L1, ""
}

// swappedUUID has the first three fields in the other byte order: some BMCs tell it so.
func swappedUUID(uuid string) string {
	u := strings.ToLower(uuid)
	if len(u) != 36 {
		return u
	}
	swap := func(s string) (out string) {
		for i := len(s); i >= 2; i -= 2 {
			out += s[i-2 : i]
		}
		return out
	}
	return swap(u[:8]) + "-" + swap(u[9:13]) + "-" + swap(u[14:18]) + u[18:]
}
