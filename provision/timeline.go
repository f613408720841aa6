package provision

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"recast/inventory"
	"recast/ipxe"
	"recast/store"
)

const (
	eventsPrefix = "/recast/events/"
	// keepDurable lines of a machine's timeline stand in the store, keepSeen
	// more in memory: packets seen are plenty and may be lost with the process.
	keepDurable = 200
	keepSeen    = 200
	// keepLogs lines of the machine's own stand beside them.
	keepLogs = 100
)

func eventKey(machine string, seq int64) string {
	return fmt.Sprintf("%s%s/%012d", eventsPrefix, machine, seq)
}

// history is a machine's timeline in memory. It has a lock of its own, so that a
// packet seen never waits for a commit.
type history struct {
	mu      sync.Mutex
	durable []TimelineEntry // the last keepDurable, as they stand in the store
	packets []TimelineEntry // the last keepSeen; a flood of them pushes out no other
	logs    []TimelineEntry // the last keepLogs, likewise
	seq     int64
	seen    TimelineEntry // the last of packets
	trace   string        // of the attempt under way
}

// follow tells which attempt belongs to what is seen from now on, "" none.
func (h *history) follow(trace string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.trace = trace
}

func (h *history) lastSeen() (string, time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen.Text = h.seen.text()
	return h.seen.Text, h.seen.Time
}

// seenLast is what servers saw, oldest first.
func (h *history) seenLast() []TimelineEntry {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.packets)
}

// saw what a server saw.
func (h *history) saw(o inventory.Observation) {
	h.keep(TimelineEntry{Time: o.Time, Kind: "seen", Seen: &o})
}

// text of a line. That of an observation is made when somebody reads it: DHCP
// waits while it is kept.
func (l TimelineEntry) text() string {
	if l.Text == "" && l.Seen != nil {
		return seenText(*l.Seen)
	}
	return l.Text
}

// log keeps a line of the machine's own. It is no sign of life: anybody may send
// one in its name.
func (h *history) log(o inventory.Observation) {
	text := o.Detail
	if o.Client != "" {
		text = o.Client + ": " + text
	}
	if o.Error != "" {
		text += " (" + o.Error + ")"
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.logs = last(keepLogs, append(h.logs, TimelineEntry{Time: o.Time, Kind: string(o.Kind), Text: text, Trace: h.trace}))
}

// note what no server saw.
func (h *history) note(at time.Time, text string) {
	h.keep(TimelineEntry{Time: at, Kind: "seen", Text: text})
}

func (h *history) keep(l TimelineEntry) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l.Trace = h.trace
	h.seen = l
	if renewal(l.Seen) || waits(l.Seen) {
		h.repeat(&l)
	}
	h.packets = last(keepSeen, append(h.packets, l))
}

// renewal tells whether an observation is of a system that runs and keeps its
// address: for ever the same two lines, for a machine that does well.
func renewal(o *inventory.Observation) bool {
	return o != nil && o.Client == string(ipxe.LoaderOS) && (o.Kind == inventory.SawRequest || o.Kind == inventory.SawAck)
}

// waits tells whether a machine was told that its turn has not come: in a room that
// comes back each hears it some ten times.
func waits(o *inventory.Observation) bool {
	return o != nil && o.Kind == inventory.SawScript && strings.HasPrefix(o.Detail, ipxe.SawWait)
}

// repeat takes the place of the same line just before. The lock is held.
func (h *history) repeat(l *TimelineEntry) {
	for i := len(h.packets) - 1; i >= max(0, len(h.packets)-2); i-- {
		old := h.packets[i]
		same := renewal(old.Seen) && renewal(l.Seen) && old.Seen.Detail == l.Seen.Detail || waits(old.Seen) && waits(l.Seen) // whose numbers differ
		if same && old.Trace == l.Trace && old.Seen.Kind == l.Seen.Kind && old.Seen.Remote == l.Seen.Remote &&
			old.Seen.Server == l.Seen.Server && old.Seen.Relay == l.Seen.Relay && old.Seen.V6 == l.Seen.V6 {
			l.Times = max(old.Times, 1) + 1
			h.packets = slices.Delete(h.packets, i, i+1)
			return
		}
	}
}

// add what was committed.
func (h *history) add(entries ...TimelineEntry) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(entries) > 0 {
		h.seq = entries[len(entries)-1].Seq
		h.durable = last(keepDurable, append(h.durable, entries...))
	}
}

func last(n int, entries []TimelineEntry) []TimelineEntry {
	return entries[max(0, len(entries)-n):]
}

// list is all in the order of time; each is ordered already.
func (h *history) list() []TimelineEntry {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := slices.Concat(h.durable, h.packets, h.logs)
	for i := range out {
		out[i].Text = out[i].text()
	}
	slices.SortStableFunc(out, func(a, b TimelineEntry) int { return a.Time.Compare(b.Time) })
	return out
}

// timelineOps numbers the lines and makes the writes that keep them, and the
// deletes that bound them.
func (e *Engine) timelineOps(m *machine, trace string, lines []TimelineEntry) ([]store.Op, []TimelineEntry, error) {
	h := &m.history
	h.mu.Lock()
	defer h.mu.Unlock()
	var ops []store.Op
	entries := make([]TimelineEntry, 0, len(lines))
	for i, l := range lines {
		l.Seq, l.Trace = h.seq+int64(i)+1, trace
		raw, err := json.Marshal(l)
		if err != nil {
			return nil, nil, fmt.Errorf("encode timeline entry: %w", err)
		}
		ops = append(ops, store.Op{Key: eventKey(m.name, l.Seq), Value: raw, If: store.Any})
		entries = append(entries, l)
		if old := l.Seq - keepDurable; old > 0 {
			ops = append(ops, store.Op{Key: eventKey(m.name, old), If: store.Any})
		}
	}
	return ops, entries, nil
}

// liveTrace of an attempt under way, "" none is.
func (e *Engine) liveTrace(s State) string {
	if s.Intent == nil || !s.Intent.Live {
		return ""
	}
	return e.key.Trace(s)
}

func (e *Engine) loadTimelines(ctx context.Context) error {
	records, _, err := e.Store.List(ctx, eventsPrefix)
	if err != nil {
		return fmt.Errorf("list timelines: %w", err)
	}
	for _, r := range records {
		name, _, _ := strings.Cut(strings.TrimPrefix(r.Key, eventsPrefix), "/")
		var entry TimelineEntry
		if err := json.Unmarshal(r.Value, &entry); err != nil {
			e.Log.Warn("timeline entry left out", "key", r.Key, "err", err)
			continue
		}
		e.machine(name).history.add(entry)
	}
	return nil
}

// Observe takes what a server saw. It joins it to a machine by hardware address
// or by the lease of the remote address, and never blocks on the store for an
// ordinary packet.
func (e *Engine) Observe(o inventory.Observation) {
	if o.Time.IsZero() {
		o.Time = e.Now()
	}
	name := e.whose(o)
	if name == "" {
		e.strangers.saw(o)
		e.Log.Debug("seen", "kind", o.Kind, "mac", o.MAC, "remote", o.Remote, "detail", o.Detail)
		return
	}
	m := e.machine(name)
	e.elsewhere.saw(o, name)
	if o.Kind == inventory.SawSyslog {
		o.Detail = hideOnce(o.Detail)
		m.history.log(o)
		return
	}
	m.history.saw(o)
	e.changes.send(name)
	// Most of them change nothing: a machine that waits for its turn asks often.
	ev := bootEvent(o)
	if in := m.committed().Intent; in != nil && in.Via == inventory.BootMedia && o.Kind == inventory.SawFile && strings.HasPrefix(path.Base(o.Detail), "vmlinuz") {
		ev = BootServed{} // its script is on its medium
	}
	if ev != nil && e.stirs(m, ev) {
		before, remote := m.committed().Intent, o.Remote
		e.spawn(func() { e.booted(m, ev, remote, before) })
	}
}

// hideOnce leaves one-time tokens out of what a loader says that it fetches.
func hideOnce(text string) string {
	before, rest, found := strings.Cut(text, ipxe.OncePath)
	if !found {
		return text
	}
	end := strings.IndexAny(rest, "/ ?")
	if end < 0 {
		end = len(rest)
	}
	return before + ipxe.OncePath + "…" + hideOnce(rest[end:])
}

// stirs tells whether a boot would be told on the timeline, and so on record.
func (e *Engine) stirs(m *machine, ev Event) bool {
	s := m.committed()
	if !Busy(s.Status.Phase) && gated(s) == nil {
		return false
	}
	_, _, lines, err := Step(e.params(m.name), s, e.Now(), ev)
	return err != nil || len(lines) > 0
}

// booted records that a machine asked what to boot. The answer to it, which may be
// on its way still, waits for neither lease nor commit. One request of each machine
// is recorded at a time, with those of others in the same moment. Where the machine
// has claimed since, it is no news: behind the claim it would look like a restart.
func (e *Engine) booted(m *machine, ev Event, remote netip.Addr, before *Intent) {
	if !e.fromItself(m.name, remote) || !m.booting.CompareAndSwap(false, true) {
		return
	}
	defer m.booting.Store(false)
	e.moment.wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	if now := m.state.Intent; now == nil || before == nil || now.Fence != before.Fence || now.Boots != before.Boots {
		return
	}
	if err := e.handleLocked(e.background(), m, ev); err != nil {
		e.Log.Warn("boot not recorded", "machine", m.name, "err", err)
	}
}

// moment gathers what may be recorded a little later, so that all of it comes to the
// store at once and shares a transaction there, which costs more than what is in it.
// Each is committed for itself: what one of them meets is nothing to the others.
type moment struct {
	mu   sync.Mutex
	over chan struct{} // closed when the moment under way ends; nil: there is none
}

const momentTime = 20 * time.Millisecond

func (m *moment) wait() {
	m.mu.Lock()
	if m.over == nil {
		m.over = make(chan struct{})
		time.AfterFunc(momentTime, func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			close(m.over)
			m.over = nil
		})
	}
	over := m.over
	m.mu.Unlock()
	<-over
}

// bootEvent is what an observation means to a machine's state, nil nothing.
func bootEvent(o inventory.Observation) Event {
	switch {
	case o.Kind != inventory.SawScript || o.Error != "":
	case strings.HasPrefix(o.Detail, string(ipxe.SpecRamdisk)):
		return BootServed{}
	case waits(&o):
		return BootWaits{}
	case strings.HasPrefix(o.Detail, string(ipxe.SpecLocal)):
		return LocalServed{}
	}
	return nil
}

// seenText is an observation in words.
func seenText(o inventory.Observation) string {
	text := string(o.Kind)
	if o.V6 != "" && o.Kind != inventory.SawUnanswered {
		text = "dhcpv6-" + strings.ToLower(o.V6)
	}
	who := text
	detail := o.Detail
	if o.Kind == inventory.SawOffer || o.Kind == inventory.SawAck {
		if o.Remote.IsValid() && !o.Remote.IsUnspecified() {
			text += " of " + o.Remote.String()
		}
		if o.Server.IsValid() {
			text += " by " + o.Server.String()
		}
		if detail = bootFileText(detail); detail != "" && text != who {
			text += ","
		}
	}
	if detail != "" {
		text += " " + detail
	}
	if o.Kind == inventory.SawClaim && o.Remote.IsValid() {
		text += " from " + o.Remote.String()
	}
	if o.Foreign {
		text += ", of another DHCP server, " + o.Server.String()
	}
	if o.Relay.IsValid() && o.Kind != inventory.SawOffer && o.Kind != inventory.SawAck {
		text += ", through relay " + o.Relay.String()
	}
	if how := transferText(o); how != "" {
		text += " (" + how + ")"
	}
	if o.Error != "" {
		text += ": " + o.Error
	}
	return text
}

// transferText is how much of a file went, and how.
func transferText(o inventory.Observation) string {
	var parts []string
	switch {
	case o.Asked:
		parts = append(parts, "size only")
	case o.Bytes > 0 && o.Bytes < o.Size:
		parts = append(parts, inventory.SizeTextBeside(o.Bytes, o.Size)+" of "+inventory.SizeTextBeside(o.Size, o.Bytes))
	case o.Bytes > 0:
		parts = append(parts, inventory.SizeText(o.Bytes))
	}
	if o.Offset > 0 {
		parts = append(parts, "from byte "+strconv.FormatInt(o.Offset, 10))
	}
	if o.BlockSize > 0 && o.Bytes > 0 {
		parts = append(parts, fmt.Sprintf("blocks of %d", o.BlockSize))
	}
	if took := time.Duration(o.Took).Round(time.Millisecond); took > 0 && o.Bytes > 0 {
		parts = append(parts, "in "+took.String())
	}
	switch {
	case o.Version != "" && o.Kind == inventory.SawScript:
		parts = append(parts, "iPXE "+o.Version)
	case o.Version != "":
		parts = append(parts, "version "+o.Version)
	}
	return strings.Join(parts, ", ")
}

// bootFileText names the boot file of a DHCP reply. Where that is a URL, which
// iPXE fills in, people look for what it leads to.
func bootFileText(file string) string {
	url, _, _ := strings.Cut(file, "?")
	switch {
	case !strings.Contains(url, "://"):
		return file
	case strings.HasSuffix(url, ipxe.ScriptPath):
		return "boot script"
	}
	return path.Base(url)
}

// fromItself tells whether a script was fetched from the machine's own address,
// as far as that can be known. Anybody may name a hardware address in a URL, and
// that must not move the machine's deadlines.
func (e *Engine) fromItself(name string, remote netip.Addr) bool {
	net := e.Set().NetworkOf(remote)
	if net == nil || net.DHCP != inventory.DHCPAuthoritative {
		return net != nil || !remote.IsValid()
	}
	ctx, cancel := context.WithTimeout(e.background(), time.Second)
	defer cancel()
	owner, err := e.leaseOf(ctx, net.Name, remote)
	return err == nil && owner == name
}

// whose machine an observation is about, "" unknown.
func (e *Engine) whose(o inventory.Observation) string {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if o.MAC != "" {
		if m := e.machineOf(o.MAC); m != nil {
			return m.Name
		}
		return ""
	}
	if l, ok := e.leases[o.Remote]; ok {
		return l.Machine
	}
	if m := e.set.MachineByAddr(o.Remote); m != nil {
		return m.Name
	}
	return e.elsewhere.whose(o.Remote)
}

// watchLeases follows the lease table, which only the DHCP server writes.
func (e *Engine) watchLeases(ctx context.Context) {
	for ctx.Err() == nil {
		w, err := e.Store.Watch(ctx, inventory.LeasePrefix)
		if err != nil {
			e.Log.Warn("watch leases", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
			continue
		}
		fresh := map[netip.Addr]inventory.Lease{} // until the snapshot is whole
		for ev := range w.Events {
			if ev.Synced {
				e.mu.Lock()
				e.leases, fresh = fresh, nil
				e.mu.Unlock()
				continue
			}
			var l inventory.Lease
			if !ev.Deleted {
				var err error
				if l, err = e.leaseTable.Decode(ev.Record); err != nil {
					e.Log.Warn("lease left out", "key", ev.Key, "err", err)
					continue
				}
			}
			if fresh != nil {
				fresh[l.Addr] = l
				continue
			}
			e.mu.Lock()
			if ev.Deleted {
				network, text, _ := strings.Cut(strings.TrimPrefix(ev.Key, inventory.LeasePrefix), "/")
				if addr, err := netip.ParseAddr(text); err == nil && e.leases[addr].Network == network {
					delete(e.leases, addr)
				}
			} else {
				e.leases[l.Addr] = l
			}
			e.mu.Unlock()
		}
	}
}

// broadcast tells every watcher which machines changed. A slow watcher loses
// names, never blocks: it gets the word All and looks at everything.
type broadcast struct {
	mu   sync.Mutex
	subs map[chan string]struct{}
	all  chan struct{} // closed and renewed with AllMachines
}

// AllMachines in a change stream stands for "look at everything".
const AllMachines = "*"

func newBroadcast() *broadcast {
	return &broadcast{subs: map[chan string]struct{}{}, all: make(chan struct{})}
}

func (b *broadcast) send(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.subs {
		select {
		case c <- name:
		default:
			// Full: the one word that stands for all takes the place of what waits. Nobody
			// else sends, so that there is room.
			for len(c) > 0 {
				select {
				case <-c:
				default:
				}
			}
			c <- AllMachines
		}
	}
	if name == AllMachines {
		close(b.all)
		b.all = make(chan struct{})
	}
}

// declared is closed when the declarations change, or who is undeclared: for those
// who must not be woken by every packet.
func (b *broadcast) declared() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all
}

// Watch streams the names of machines that changed, or AllMachines, until the
// context ends.
func (e *Engine) Watch(ctx context.Context) <-chan string {
	c := make(chan string, 256)
	b := e.changes
	b.mu.Lock()
	b.subs[c] = struct{}{}
	b.mu.Unlock()
	context.AfterFunc(ctx, func() {
		b.mu.Lock()
		delete(b.subs, c)
		close(c)
		b.mu.Unlock()
	})
	return c
}

// Phases counts the known machines by phase.
func (e *Engine) Phases() map[Phase]int {
	e.mu.RLock()
	defer e.mu.RUnlock()
	out := map[Phase]int{}
	for _, m := range e.machines {
		out[m.shown.Load().Status.Phase]++
	}
	return out
}

// Timeline is a machine's history, oldest first.
func (e *Engine) Timeline(name string) []TimelineEntry {
	m, ok := e.known(name)
	if !ok {
		return nil
	}
	return m.history.list()
}
