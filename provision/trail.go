package provision

import (
	"net/netip"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"recast/inventory"
	"recast/ipxe"
)

// trail is one boot as the servers saw it: the last observation of each thing
// that has to happen, nil where it was not seen.
type trail struct {
	from time.Time // when the machine was switched on, or a person was asked to

	Asked      *inventory.Observation // DHCP from firmware or loader
	Unanswered *inventory.Observation // the last thing it said got no answer
	Offered    *inventory.Observation
	Elsewhere  *inventory.Observation // it chose another server
	Acked      *inventory.Observation
	NoLoader   *inventory.Observation // why the answer names none
	Loader     *inventory.Observation
	Loaders    map[string]int // whole ones, by name
	Scripts    int
	IPXE       *inventory.Observation // DHCP from iPXE
	Script     *inventory.Observation
	Kernel     *inventory.Observation
	Initrd     *inventory.Observation
	System     *inventory.Observation // DHCP from the ramdisk's system, or the installed one's
	TLS        *inventory.Observation // a handshake that failed
	Claim      *inventory.Observation

	step string // the last that was entered
	bmc  string // the last error of its BMC

	// What the ramdisk said at last, by syslog; anybody may say so in its name.
	panicked string // of the kernel
	stopped  string // of the agent: why it gave up
	disk     string // of the kernel: an error of a disk
}

// follow reads the boot that began last.
func follow(lines []TimelineEntry) trail {
	var t trail
	for _, l := range lines {
		switch {
		case l.Kind == "step" && (l.Text == string(StepStopping) || l.Text == string(StepPowering) || l.Text == string(StepAwaitingPerson)):
			t = trail{from: l.Time, step: l.Text}
		case l.Kind == "step" && slices.Contains(allSteps, StepName(l.Text)):
			t.step = l.Text
			if l.Text == string(StepStarting) {
				t = trail{from: l.Time, step: l.Text} // the next boot is the installed system's
			}
		case l.Seen != nil:
			t.saw(l.Seen)
		case l.Kind == string(inventory.SawSyslog):
			t.heard(l.Text)
		case l.Kind == "seen" && strings.HasPrefix(l.Text, bmcPrefix):
			t.bmc = strings.TrimPrefix(l.Text, bmcPrefix)
		}
	}
	return t
}

// bmcPrefix begins what the timeline says of a BMC that fails and is asked again.
const bmcPrefix = "its BMC: "

var allSteps = []StepName{StepStopping, StepArming, StepPowering, StepBooting, StepClaiming, StepInspecting, StepWriting,
	StepVerifying, StepStarting, StepRestarting, StepPowerOff, StepAwaitingPerson}

// heard a line of the machine's own.
func (t *trail) heard(text string) {
	if why, ok := strings.CutPrefix(text, "recast-agent: STOPPED: "); ok {
		t.stopped = why
		return
	}
	said, ok := strings.CutPrefix(text, "kernel: ")
	if !ok {
		return
	}
	if _, after, ok := strings.Cut(said, "] "); ok {
		said = after
	}
	switch {
	case strings.Contains(said, "Kernel panic - not syncing"):
		t.panicked = said
	case strings.Contains(said, "I/O error, dev "), strings.Contains(said, "critical medium error, dev "), strings.Contains(said, "failed command: "):
		t.disk = said
	}
}

func (t *trail) saw(o *inventory.Observation) {
	switch o.Kind {
	case inventory.SawDiscover, inventory.SawRequest, inventory.SawUnanswered:
		if o.Client != string(ipxe.LoaderOS) {
			t.panicked, t.stopped = "", "" // it has restarted
		}
		switch {
		case o.Client == string(ipxe.LoaderOS):
			t.System = o
			return
		case o.Client == string(ipxe.LoaderIPXE):
			t.IPXE = o
		}
		if o.V6 != "" && o.Kind == inventory.SawUnanswered && t.Offered != nil {
			return // it has what it needs by IPv4
		}
		t.Asked, t.Unanswered = o, nil
		if o.Kind == inventory.SawUnanswered {
			t.Unanswered = o
		}
		if o.Foreign {
			t.Elsewhere = o
		}
	case inventory.SawOffer:
		t.Offered = o
	case inventory.SawAck:
		if o.Client == string(ipxe.LoaderOS) {
			t.System = o
			return
		}
		t.Acked, t.Elsewhere = o, nil
	case inventory.SawTFTP, inventory.SawFile:
		switch name := strings.Trim(path.Base(o.Detail), `"`); {
		case o.Asked || ipxe.Optional(o.Detail):
		case strings.HasPrefix(name, "vmlinuz"):
			t.Kernel = o
		case strings.HasPrefix(name, "initrd"):
			t.Initrd = o
		case strings.HasPrefix(name, "ramdisk"): // both in one
			t.Kernel, t.Initrd = o, o
		default:
			t.Loader = o
			if whole(o) {
				if t.Loaders == nil {
					t.Loaders = map[string]int{}
				}
				t.Loaders[name]++
			}
		}
	case inventory.SawNoLoader:
		t.NoLoader = o
	case inventory.SawScript:
		t.Script = o
		t.Scripts++
	case inventory.SawTLS:
		t.TLS = o
	case inventory.SawClaim:
		t.Claim = o
	}
}

// loops is how often the loader was fetched that was fetched most often. Some
// firmware fetches several, one after the other: shim, GRUB and its configuration.
func (t *trail) loops() int {
	most := 0
	for _, n := range t.Loaders {
		most = max(most, n)
	}
	return most
}

// whole tells whether a file was fetched to its end.
func whole(o *inventory.Observation) bool {
	return o != nil && o.Error == "" && o.Offset+o.Bytes >= o.Size
}

// strangers are the machines that nobody declared and that were heard of last.
// The list is short: whoever invents addresses pushes out others, no more.
type strangers struct {
	mu   sync.Mutex
	last []inventory.Observation
}

const keepStrangers = 64

func (s *strangers) saw(o inventory.Observation) {
	if o.MAC == "" || o.Kind != inventory.SawDiscover && o.Kind != inventory.SawUnanswered {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = slices.DeleteFunc(s.last, func(old inventory.Observation) bool { return old.MAC == o.MAC })
	if len(s.last) >= keepStrangers {
		s.last = slices.Delete(s.last, 0, 1)
	}
	s.last = append(s.last, o)
}

func (s *strangers) list() []inventory.Observation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.last)
}

// elsewhere are the addresses that machines took from other DHCP servers, as beside
// ProxyDHCP: by them what they fetch and log is joined to them, and nothing more.
// Each machine has one at most.
type elsewhere struct {
	mu   sync.Mutex
	of   map[netip.Addr]string
	addr map[string]netip.Addr
}

func (e *elsewhere) saw(o inventory.Observation, name string) {
	if !o.Foreign || o.Kind != inventory.SawRequest || !o.Remote.IsValid() {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.of == nil {
		e.of, e.addr = map[netip.Addr]string{}, map[string]netip.Addr{}
	}
	delete(e.of, e.addr[name])
	delete(e.addr, e.of[o.Remote])
	e.of[o.Remote], e.addr[name] = name, o.Remote
}

func (e *elsewhere) whose(a netip.Addr) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.of[a]
}
