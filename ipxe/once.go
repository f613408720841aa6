package ipxe

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path"
	"strings"
	"sync"
	"time"

	"recast/inventory"
)

// OncePath is where a machine that boots through its BMC finds what is meant for it
// alone: + its one-time token + / + a name.
const OncePath = "/boot/once/"

// What stands in the folder of a token, beside loaders and autoexec.ipxe.
const (
	discName       = "recast.iso"
	onceScriptName = "script"
)

// DiscPath is what a BMC is told to insert.
func DiscPath(token string) string { return OncePath + token + "/" + discName }

// OnceLoaderPath is the loader that a BMC is told for a machine which boots by HTTP
// Boot; an error where there is none.
func (h *Handler) OnceLoaderPath(token string, m *inventory.Machine) (string, error) {
	arch := FirmwareX64HTTP
	if m.Arch == inventory.ARM64 {
		arch = FirmwareARM64HTTP
	}
	boot := Boot{Library: h.Library}
	if h.Loaders != nil {
		boot.Have = h.Loaders.Have
	}
	loader, why := boot.pick(Client{Arch: arch, Loader: LoaderHTTP}, Spec{Kind: SpecRamdisk, Loader: m.Boot.Loader, SecureBoot: m.SecureBoot})
	if why != "" {
		return "", fmt.Errorf("choose a loader: %s", why)
	}
	return OncePath + token + "/" + loader, nil
}

// Once is what a one-time token leads to.
type Once struct {
	Machine string
	MAC     inventory.MAC // of the card that it boots by
	Via     inventory.BootVia
	// Of a disc: whose it is, and what starts the machine. Nothing in it may change
	// while its token holds: the disc is read in pieces.
	Arch   inventory.Arch
	Spec   Spec
	Static inventory.Static
	VLAN   int
	Server netip.AddrPort // boot listener
}

// discs are those that are being read, so that all of one comes from the same bytes
// whatever changes meanwhile. The last few thousand are kept, of some 20 KB each.
type discs struct {
	mu    sync.Mutex
	made  map[string]*disc // by token
	order []string
	told  map[string]bool
}

const keepDiscs = 4096

func (d *discs) get(token string, build func() (*disc, error)) (*disc, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if made, ok := d.made[token]; ok {
		return made, nil
	}
	made, err := build()
	if err != nil {
		return nil, err
	}
	if d.made == nil {
		d.made, d.told = map[string]*disc{}, map[string]bool{}
	}
	if len(d.order) >= keepDiscs {
		delete(d.made, d.order[0])
		delete(d.told, d.order[0])
		d.order = d.order[1:]
	}
	d.made[token] = made
	d.order = append(d.order, token)
	return made, nil
}

// first tells once that a disc is read: a BMC asks for hundreds of pieces.
func (d *discs) first(token string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.told[token] {
		return false
	}
	d.told[token] = true
	return true
}

// once serves what stands behind a token. Whoever does not know one learns nothing,
// not even whether it was one.
func (h *Handler) once(w http.ResponseWriter, r *http.Request, rest string) {
	token, name, _ := strings.Cut(rest, "/")
	if h.Tokens == nil {
		http.NotFound(w, r)
		return
	}
	o, err := h.Tokens(r.Context(), token)
	if err != nil {
		h.log().Debug("one-time address", "remote", remoteAddr(r), "err", err)
		http.NotFound(w, r)
		return
	}
	switch {
	case o.Via == inventory.BootMedia && name == discName:
		h.disc(w, r, token, o)
	case o.Via != inventory.BootHTTP:
		http.NotFound(w, r)
	case path.Base(name) == AutoexecName:
		writeScript(w, onceAutoexec(token, o))
	case name == onceScriptName:
		h.scriptOf(w, r, token)
	default:
		h.loader(w, r, name)
	}
}

func (h *Handler) disc(w http.ResponseWriter, r *http.Request, token string, o Once) {
	d, err := h.discs.get(token, func() (*disc, error) {
		script, err := discText(o)
		if err != nil {
			return nil, err
		}
		if h.Loaders == nil {
			return nil, fmt.Errorf("make disc: no loaders")
		}
		return h.Loaders.disc(o.Arch, script)
	})
	if err != nil {
		h.log().Warn("no virtual medium", "machine", o.Machine, "err", err)
		http.Error(w, "the medium cannot be made; see the server's log", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/vnd.efi.iso")
	w.Header().Set("ETag", d.ETag())
	w.Header().Set("Cache-Control", "no-store") // it holds a nonce
	// A BMC may take it at once or read it piece by piece for an hour.
	seen := Transfer(w, r, discName, func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, io.NewSectionReader(d, 0, d.Size()))
	})
	if seen.Error == "" && !seen.Asked && h.discs.first(token) {
		h.observe(inventory.Observation{Kind: inventory.SawMedium, MAC: o.MAC, Remote: seen.Remote, Detail: "its BMC reads the virtual medium", Size: d.Size()})
	}
}

// discText is the script on a disc: by the one card, with the address that it
// declares, to the ramdisk. It asks this server nothing but kernel and ramdisk, so
// that the nonce passes the machine's network nowhere in the clear.
func discText(o Once) (string, error) {
	spec := o.Spec
	if spec.Kind != SpecRamdisk {
		return "", fmt.Errorf("make disc: nothing to start: %s", spec.Reason)
	}
	base := safe("http://" + o.Server.String())
	line, fetch, err := ramdiskLines(spec, base)
	if err != nil {
		return "", err
	}
	if _, err := inventory.ParseMAC(string(o.MAC)); err != nil {
		return "", fmt.Errorf("make disc: %w", err)
	}
	if !o.Static.Address.IsValid() || !o.Static.Address.Addr().Is4() {
		return "", fmt.Errorf("make disc: no IPv4 address for %s", o.Machine)
	}
	s := begin(spec, "starting the ramdisk from a virtual medium")
	s.add("set try:int32 0")
	s.add("set wait:int32", num(firstWait))
	s.add(":again")
	s.add("set nic:int32 0")
	s.add(":nic")
	s.add("isset ${net${nic}/mac} || goto none")
	s.add("iseq ${net${nic}/mac}", safe(o.MAC), "&& goto found ||")
	s.add("inc nic")
	s.add("goto nic")
	s.add(":found")
	s.add("set dev net${nic}")
	if o.VLAN != 0 {
		s.add("vcreate --tag", num(o.VLAN), "net${nic} ||") // it may be there from an earlier try
		s.add("set dev net${nic}-" + num(o.VLAN))
	}
	s.add("ifopen net${nic} || goto failed")
	s.add("set ${dev}/ip", safe(o.Static.Address.Addr().String()))
	s.add("set ${dev}/netmask", safe(net.IP(net.CIDRMask(o.Static.Address.Bits(), 32)).String()))
	if g := o.Static.Gateway; g.Is4() {
		s.add("set ${dev}/gateway", safe(g.String()))
	}
	s.add("ifopen ${dev} || goto failed")
	s.add("iflinkwait --timeout", num(linkWait), "${dev} || goto failed")
	s.add("imgfree")
	s.add(append(line, "|| goto failed")...)
	for _, f := range fetch {
		s.add(f...)
	}
	s.add("boot || goto failed")
	s.add(":none")
	s.add("echo recast: no network card has the address", safe(o.MAC))
	s.add(":failed")
	s.add("echo recast: the ramdisk did not start: ${errno}")
	s.backOff()
	s.add("goto again")
	return s.String(), nil
}

// onceAutoexec is for the iPXE that firmware loaded by a one-time address: any
// card that gets an address, from whomever, and the script behind the token.
func onceAutoexec(token string, o Once) string {
	url := safe("http://"+o.Server.String()+OncePath) + safeToken(token) + "/" + onceScriptName
	return eachCard(func(s *script) {
		s.add("dhcp net${nic} || goto next")
		s.add("chain --autofree --replace", url+scriptQuery+"&try=${try}", "||")
	})
}

// asksBy makes a script ask again where it came from: by hardware address alone the
// machine is told nothing.
func asksBy(token, script string) string {
	if token == "" {
		return script
	}
	return strings.ReplaceAll(script, " "+ScriptPath+"?", " "+OncePath+string(safeToken(token))+"/"+onceScriptName+"?")
}

// safeToken is a token that was found to be one.
func safeToken(token string) safe {
	if strings.ContainsFunc(token, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '.'
	}) {
		return "x"
	}
	return safe(token)
}
