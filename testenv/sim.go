package testenv

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"recast/agent"
	"recast/inventory"
)

// SimulatedOptions describe a simulated machine. Name, Dir, MAC, Server or
// Wire, and one disk are required.
type SimulatedOptions struct {
	Name string
	// Dir holds the disks; it must exist.
	Dir string
	MAC inventory.MAC
	// UUID and Serial as SMBIOS tells them.
	UUID, Serial string
	UEFI         bool
	Disks        []inventory.DiskID // Serial or WWN, and Size
	// Fill is what a new disk is full of; FillEnds fills its first and last MiB, where
	// systems begin, and leaves a hole between.
	Fill     byte
	FillEnds bool
	// Server is host:port of the boot listener, as DHCP would name it, for a machine
	// without a Wire, which begins with the boot script.
	Server string
	// Wire is what it hangs on, and Firmware who asks there; "" by UEFI.
	Wire     *SimWire
	Firmware SimFirmware
	// BMC in front of it; BMCNone for none.
	BMC            RackBMC
	User, Password string
	Faults         BMCFaults
	// Sessions at once that the BMC has; 0 as few as real ones. A killed server
	// leaves its own open, and they take a minute or more to end.
	Sessions int
	// Pace is how long each stage of a start takes, and each change of a disk;
	// 0 as fast as the host is.
	Pace time.Duration
	// NetworkFirst is a boot order with the network before the disk. A BIOS has it for a
	// gate by somebody's hand; in UEFI it is where the order begins.
	NetworkFirst bool
	// NoKexec: its ramdisk loads no kernel.
	NoKexec bool
	// FallsThrough: where no server answers, its firmware goes on with the next entry. Else
	// a machine without a Wire asks for ever.
	FallsThrough bool
	// DiskEntry is a UEFI that puts an entry for its disk back at each start, behind the
	// first that leads to the network, if its order has none.
	DiskEntry bool
	// TPM: it has one, by swtpm.
	TPM bool
	// Dead machines show power and never ask for anything.
	Dead bool
	Log  func(format string, args ...any) // nil discards
}

// Simulated is a whole machine in this process. Its power, firmware and
// installed system are played; the agent, every byte over the wire and the BMC
// protocols are real.
type Simulated struct {
	*SimMachine
	Options SimulatedOptions
	Disks   []*SimDisk
	MachineBMC

	vars *simVars // of UEFI; nil under a BIOS

	power sync.Mutex // over every change of the power
	mu    sync.Mutex
	boot  *simBoot // the present start; nil while off
	boots []SimBoot
	seq   int
	dead  bool
	board Board // that is in
	// noLink: its cable is pulled. conns are those that end with it, without a Wire.
	noLink bool
	conns  map[net.Conn]bool
	chip   simChip
	hangs  int // restarts from inside, still to come
	work   sync.WaitGroup
}

// SimBoot is what became of one start.
type SimBoot struct {
	Number int
	At     time.Time
	Once   BootOnce // that it obeyed
	// Path are its stages in words: "script", "ramdisk: deploy, attempt 1",
	// "disk", "reported", "nothing to start".
	Path []string
}

// simBoot is a start under way.
type simBoot struct {
	number int
	once   BootOnce
	reason string // of the boot script
	board  Board
	dead   bool // under the lock of every disk; see Simulated.end
	ctx    context.Context
	cancel context.CancelFunc
	before <-chan struct{} // closed when the start before this one is over
	done   chan struct{}
}

func (o *SimulatedOptions) firmware() SimFirmware {
	return cmp.Or(o.Firmware, simEither(o.UEFI, SimUEFI, SimBIOS))
}

// NewSimulated builds a machine that is off; Close ends it.
func NewSimulated(o SimulatedOptions) (*Simulated, error) {
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	s := &Simulated{SimMachine: &SimMachine{Firmware: o.UEFI}, Options: o, dead: o.Dead, board: Board{o.UUID, o.Serial}}
	if o.UEFI {
		s.vars = newSimVars(o.NetworkFirst)
	}
	for i, id := range o.Disks {
		d, err := newSimDisk(filepath.Join(o.Dir, fmt.Sprintf("%s-%d.img", o.Name, i)), id, o.Fill, o.FillEnds)
		if err != nil {
			return nil, fmt.Errorf("build simulated machine %q: %w", o.Name, err)
		}
		d.Pace = o.Pace
		s.Disks = append(s.Disks, d)
	}
	s.OnStart(s.begin)
	var err error
	switch o.BMC {
	case BMCIPMI:
		s.IPMI, err = NewIPMI(IPMIOptions{Sessions: o.Sessions, User: o.User, Password: o.Password,
			UUID: o.UUID, Serial: o.Serial, Machine: s, Faults: o.Faults})
	case BMCRedfish:
		s.Redfish, err = NewRedfish(RedfishOptions{Sessions: o.Sessions, User: o.User, Password: o.Password, UUID: o.UUID, Serial: o.Serial, Machine: s,
			Hardware: RedfishHardware{MACs: []string{string(o.MAC)}, Cores: 2, MemoryMiB: 1024, Disks: o.Disks, SecureBoot: redfishSecureBoot(o.UEFI, false)}, Faults: o.Faults})
	}
	if err != nil {
		return nil, fmt.Errorf("build simulated machine %q: %w", o.Name, err)
	}
	return s, nil
}

// SetDead decides whether its next starts ask for anything.
func (s *Simulated) SetDead(dead bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead = dead
}

// SetBoard puts in another board, for which the machine is switched off.
func (s *Simulated) SetBoard(ctx context.Context, b Board) error {
	if err := s.PowerOff(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.board = b
	return nil
}

// HangAtRestart makes the next n restarts from inside hang until somebody
// switches the power.
func (s *Simulated) HangAtRestart(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hangs = n
}

// Unplug pulls the cable of its network, or plugs it in again.
func (s *Simulated) Unplug(out bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noLink = out
	if out {
		for c := range s.conns {
			_ = c.Close()
		}
		clear(s.conns)
	}
}

var errNoLink = errors.New("its network has no link")

// dial is the connection of a machine without a Wire.
func (s *Simulated) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := (&net.Dialer{Timeout: 20 * time.Second}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.noLink {
		_ = c.Close()
		return nil, errNoLink
	}
	if s.conns == nil {
		s.conns = map[net.Conn]bool{}
	}
	s.conns[c] = true
	return simConn{c, s}, nil
}

// simConn is forgotten when it ends.
type simConn struct {
	net.Conn
	s *Simulated
}

func (c simConn) Close() error {
	c.s.mu.Lock()
	delete(c.s.conns, c.Conn)
	c.s.mu.Unlock()
	return c.Conn.Close()
}

// Logins that its BMC saw.
func (s *Simulated) Logins() int {
	if b := s.either(); b != nil {
		return b.Count("login")
	}
	return 0
}

// Boots is every start so far, with what became of it.
func (s *Simulated) Boots() []SimBoot {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := append([]SimBoot(nil), s.boots...)
	for i := range out {
		out[i].Path = append([]string(nil), out[i].Path...)
	}
	return out
}

// Close takes the BMC away, then the power, and waits for everything.
func (s *Simulated) Close() error {
	err := errors.Join(s.closeBMC(), s.PowerOff(context.Background()))
	s.work.Wait()
	return err
}

// PowerOn starts it; see Machine.
func (s *Simulated) PowerOn(ctx context.Context) error {
	s.power.Lock()
	defer s.power.Unlock()
	return s.SimMachine.PowerOn(ctx)
}

// PowerOff cuts the power: when it returns, no disk changes any more.
func (s *Simulated) PowerOff(ctx context.Context) error {
	s.power.Lock()
	defer s.power.Unlock()
	s.end()
	return s.SimMachine.PowerOff(ctx)
}

// Shutdown is heard by an installed system alone.
func (s *Simulated) Shutdown(ctx context.Context) error {
	s.power.Lock()
	defer s.power.Unlock()
	s.mu.Lock()
	listens := s.boot != nil && len(s.boots) > 0 && simHas(s.boots[len(s.boots)-1].Path, simDiskStarted)
	s.mu.Unlock()
	if !listens {
		return nil
	}
	if err := s.SimMachine.Shutdown(ctx); err != nil {
		return err
	}
	if !s.Powered() {
		s.end()
	}
	return nil
}

// Reset pulls the reset line.
func (s *Simulated) Reset(ctx context.Context) error {
	s.power.Lock()
	defer s.power.Unlock()
	return s.SimMachine.Reset(ctx)
}

// begin is the start of the machine; the power's lock is held.
func (s *Simulated) begin(once BootOnce) {
	before := s.end()
	s.mu.Lock()
	s.seq++
	b := &simBoot{number: s.seq, once: once, board: s.board, before: before, done: make(chan struct{})}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	s.boot = b
	s.boots = append(s.boots, SimBoot{Number: b.number, At: time.Now(), Once: once})
	dead := s.dead
	s.mu.Unlock()
	s.work.Add(1)
	go func() {
		defer s.work.Done()
		defer close(b.done)
		defer b.cancel()
		if b.before != nil {
			<-b.before
		}
		if dead {
			<-b.ctx.Done()
			return
		}
		s.run(b)
	}()
}

// end stops the present start: every disk is locked once, so that a change
// under way has happened and none comes after it.
func (s *Simulated) end() (done <-chan struct{}) {
	s.mu.Lock()
	b := s.boot
	s.boot = nil
	s.mu.Unlock()
	if b == nil {
		return nil
	}
	for _, d := range s.Disks {
		d.mu.Lock()
	}
	b.dead = true
	for _, d := range s.Disks {
		d.mu.Unlock()
	}
	b.cancel()
	return b.done
}

// reboot from inside, unless something else has ended this start.
func (s *Simulated) reboot(b *simBoot) {
	s.mu.Lock()
	hangs := s.hangs > 0
	if hangs {
		s.hangs--
	}
	s.mu.Unlock()
	if hangs {
		s.note(b, "hangs at its restart")
		<-b.ctx.Done()
		return
	}
	s.power.Lock()
	defer s.power.Unlock()
	if b.ctx.Err() == nil {
		_ = s.SimMachine.Reset(context.Background()) // it is on
	}
}

func (s *Simulated) off(b *simBoot) {
	s.power.Lock()
	defer s.power.Unlock()
	if b.ctx.Err() == nil {
		s.end()
		_ = s.SimMachine.PowerOff(context.Background()) // it cannot fail
	}
}

// note adds a stage to the path of a start.
func (s *Simulated) note(b *simBoot, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.Options.Log("%s: start %d: %s", s.Options.Name, b.number, text)
	s.Port.Say(text + "\r\n")
	s.mu.Lock()
	defer s.mu.Unlock()
	rec := &s.boots[b.number-1]
	if n := len(rec.Path); n == 0 || rec.Path[n-1] != text {
		rec.Path = append(rec.Path, text)
	}
}

func simHas(path []string, stage string) bool {
	for _, p := range path {
		if p == stage {
			return true
		}
	}
	return false
}

// simHardware is what the agent sees of the machine in one start.
type simHardware struct {
	s    *Simulated
	b    *simBoot
	chip *simTPM // nil: it has none
}

var _ agent.Machine = simHardware{}

func (h simHardware) Facts(ctx context.Context) (inventory.Facts, error) {
	o := h.s.Options
	f := inventory.Facts{
		CPU:          inventory.CPUFacts{ModelName: "simulated", Count: 2, Architecture: simEither(o.firmware() == SimUBoot, "aarch64", "x86_64")},
		Memory:       inventory.MemoryFacts{Total: 1 << 30, PhysicalMB: 1024},
		Interfaces:   []inventory.NICFacts{{Name: "eth0", MAC: o.MAC, HasCarrier: true}},
		SystemVendor: inventory.SystemVendor{ProductName: "simulated", SerialNumber: h.b.board.Serial, UUID: h.b.board.UUID},
		Boot:         inventory.BootFacts{Mode: "bios", PXEInterface: o.MAC},
	}
	if o.UEFI {
		f.Boot.Mode = "uefi"
	}
	if h.chip != nil {
		f.TPM = "2"
	}
	for _, d := range h.s.Disks {
		if d.missing() {
			continue
		}
		facts, err := d.facts()
		if err != nil {
			return f, fmt.Errorf("inspect disk: %w", err)
		}
		f.Disks = append(f.Disks, facts)
	}
	return f, simPause(ctx, o.Pace)
}

// OpenDisk finds the one disk that id names, as the real one does.
func (h simHardware) OpenDisk(_ context.Context, want inventory.DiskID) (agent.Disk, error) {
	var found *SimDisk
	for _, d := range h.s.Disks {
		if agent.SameDisk(want, d.id()) == nil && !d.missing() {
			if found != nil {
				return nil, fmt.Errorf("open disk: %s and %s are both the job's", found.Path, d.Path)
			}
			found = d
		}
	}
	if found == nil {
		return nil, errors.New("open disk: no disk here is the job's")
	}
	return found.open(h.b)
}

// LoadKernel takes any kernel: what was loaded is the disk's own, which starts then.
func (h simHardware) LoadKernel(kernel, _ *os.File, args string) error {
	if h.s.Options.NoKexec {
		return errors.New("the simulated kernel refuses it")
	}
	info, err := kernel.Stat()
	if err != nil {
		return err
	}
	h.s.note(h.b, "loaded %d bytes: %s", info.Size(), args)
	return nil
}

func (h simHardware) Variables() agent.Variables {
	if h.s.vars == nil {
		return nil // and no interface that holds a nil
	}
	return h.s.vars
}
