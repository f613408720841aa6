package testenv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"recast/inventory"
)

// DiskBus is how a disk is attached, and so what the ramdisk calls it.
type DiskBus string

const (
	BusAHCI   DiskBus = "ahci" // the default
	BusVirtio DiskBus = "virtio"
	BusNVMe   DiskBus = "nvme"
	BusSCSI   DiskBus = "scsi"
)

// QEMUDisk is a raw file as a disk.
type QEMUDisk struct {
	Path   string
	Size   int64 // bytes; informs the lab only, the file's size counts
	Serial string
	Bus    DiskBus
	// Discard passes the guest's discards to the file. False ignores them, as
	// disks do that keep old data behind a TRIM.
	Discard bool
}

// NICModel is the network card of a machine.
type NICModel string

const (
	NICVirtio NICModel = "virtio" // the default
	NICE1000  NICModel = "e1000"  // BIOS only: Debian's OVMF has no driver for it
)

// QEMUNIC is a network card on a tap of the Net.
type QEMUNIC struct {
	MAC   string
	Tap   string
	Model NICModel
	NoROM bool // BIOS then cannot boot from it
	Down  bool // the card sees no link
}

// QEMU is a machine with real firmware: one qemu-system process, in
// software emulation, inside a Net. The process is the power: on means that it
// runs.
//
// Boot order without override: the disks, then the network cards.
type QEMU struct {
	Name     string
	Firmware QEMUFirmware
	Arch     inventory.Arch // "": amd64; arm64 has UEFI only, and no AHCI
	NetBoot  QEMUNetBoot
	// SecureBoot: its UEFI starts what Microsoft or the machine's owner signed.
	SecureBoot bool
	TPM        bool // a TPM 2.0, which keeps its secrets
	// NetworkFirst is a boot order with the network before the disks.
	NetworkFirst bool
	// OwnOrder: QEMU names no order but for what was asked for once, so that what OVMF
	// has in its variables counts. Where QEMU names one, OVMF puts that in its place at
	// each start and drops entries of disks that are not in it.
	OwnOrder bool
	MemoryMB int // 0: 1024
	CPUs     int // 0: 1
	Disks    []QEMUDisk
	NICs     []QEMUNIC
	Drive    bool   // a CD drive, empty at first, for virtual media
	UUID     string // SMBIOS
	Serial   string // SMBIOS
	// Dir holds the console's log and socket, the firmware's variables and
	// QEMU's own messages. It must exist.
	Dir string
	Net *Net
	Log *slog.Logger

	watchers

	mu   sync.Mutex // also serialises power changes
	run  *qemuRun   // nil before the first start; may have ended
	once BootOnce
	past []BlockStats // of ended runs

	faults machineFaults
	faulty []*faultyDisk // nil until the first fault

	medium Medium // in the drive; nil for none
	nbd    *nbdServer
}

// QEMUFirmware is what the machine starts with.
type QEMUFirmware string

const (
	FirmwareBIOS QEMUFirmware = "bios" // SeaBIOS, netboots by iPXE in the card's ROM
	FirmwareUEFI QEMUFirmware = "uefi" // OVMF or AAVMF, netboots by its own PXE
)

// QEMUNetBoot is how UEFI firmware loads from the network. It tries PXE over IPv4,
// over IPv6, then HTTP Boot over either, each for more than a minute; what stands
// before the chosen one is switched off.
type QEMUNetBoot string

const (
	NetBootPXE  QEMUNetBoot = ""     // PXE over IPv4
	NetBootPXE6 QEMUNetBoot = "pxe6" // PXE over IPv6
	NetBootHTTP QEMUNetBoot = "http" // HTTP Boot
)

// qemuRun is one life of the process, from power on to power off.
type qemuRun struct {
	cmd    *exec.Cmd
	tpm    *exec.Cmd // nil for none; ends when cmd has
	qmp    *qmpConn
	events chan QMPEvent
	done   chan struct{} // closed when the process is gone and the goroutines ended

	// Guarded by QEMU.mu.
	off     bool           // shut down from inside, the process about to go
	index   map[string]int // bootindex by device
	armed   bool           // bootindex holds the override
	armedAt int            // events before it did
	started time.Time      // the last reset that was a start
	restore *time.Timer    // ends an override that was obeyed; nil when none is pending
	reset   chan struct{}  // closed and replaced with each reset
	gone    bool           // started without its disks
	size    int64          // that its disks show; 0: their own
	served  map[int]bool   // disks that are not QEMU's own files any more
	halted  bool           // its processor stands still

	servers []*nbdServer // of those
}

// closeDisks ends what serves its disks, once the process is gone.
func (r *qemuRun) closeDisks(m *QEMU) {
	for _, d := range m.faulty {
		d.release()
	}
	for _, s := range r.servers {
		_ = s.Close() // its socket is gone
	}
}

// wait for the end of the machine's processes.
func (r *qemuRun) wait() error {
	err := r.cmd.Wait()
	if r.tpm != nil {
		_ = r.tpm.Wait()
	}
	return err
}

func (r *qemuRun) ended() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

var (
	_ Machine     = (*QEMU)(nil)
	_ Watched     = (*QEMU)(nil)
	_ Interrupter = (*QEMU)(nil)
	_ MediaDrive  = (*QEMU)(nil)
	_ BootDevices = (*QEMU)(nil)
)

// ConsoleLog is the file with everything the machine said on its first serial
// port since it was made.
func (m *QEMU) ConsoleLog() string { return filepath.Join(m.Dir, "console.log") }

// qemuConsole is relative to Dir, since a socket's path ends at 107 bytes.
const qemuConsole = "console.sock"

// DialConsole connects to the first serial port of a running machine; QEMU
// takes one caller at a time.
func (m *QEMU) DialConsole(ctx context.Context) (net.Conn, error) {
	f, err := os.Open(m.Dir)
	if err != nil {
		return nil, fmt.Errorf("open machine's folder: %w", err)
	}
	defer f.Close()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), qemuConsole))
	if err != nil {
		return nil, fmt.Errorf("connect to the console in %q (is the machine on?): %w", m.Dir, err)
	}
	return conn, nil
}

// Console implements Consoled.
func (m *QEMU) Console(ctx context.Context) (io.ReadWriteCloser, error) {
	return m.DialConsole(ctx)
}

// UEFI implements Machine.
func (m *QEMU) UEFI() bool { return m.Firmware == FirmwareUEFI }

// Powered implements Machine.
func (m *QEMU) Powered() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.on()
}

func (m *QEMU) on() bool { return m.run != nil && !m.run.off && !m.run.ended() }

// PowerOn implements Machine.
func (m *QEMU) PowerOn(ctx context.Context) error {
	started, err := m.powerOn(ctx)
	if started {
		m.changed(MachineOn)
	}
	return err
}

func (m *QEMU) powerOn(ctx context.Context) (started bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.on() {
		return false, nil
	}
	if err := m.waitGone(ctx); err != nil {
		return false, err
	}
	obey := m.obeyed()
	run, err := m.start(ctx, obey)
	if err != nil {
		return false, fmt.Errorf("power %q on: %w", m.Name, err)
	}
	m.run, m.once = run, BootOnce{}
	if obey != BootNone {
		// The firmware's copy of the order was made when QEMU started; what is set
		// from here on is for the start after this one.
		if err := m.setBootIndexes(ctx, run, BootNone); err != nil {
			return true, fmt.Errorf("power %q on: %w", m.Name, err)
		}
	}
	return true, nil
}

// waitGone waits for a process whose machine went off by itself.
func (m *QEMU) waitGone(ctx context.Context) error {
	if m.run == nil {
		return nil
	}
	run := m.run
	m.mu.Unlock() // its last goroutine takes it
	defer m.mu.Lock()
	select {
	case <-run.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of %q: %w", m.Name, context.Cause(ctx))
	}
}

// start makes the process and greets its monitor.
func (m *QEMU) start(ctx context.Context, boot BootDevice) (*qemuRun, error) {
	args, err := m.args(boot)
	if err != nil {
		return nil, err
	}
	// A pair of sockets instead of a path: connected from the start, nothing to
	// poll for, and gone with either end.
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make monitor socket: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "qmp"), os.NewFile(uintptr(fds[1]), "qmp")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, fmt.Errorf("make monitor socket: %w", err)
	}
	log, err := os.OpenFile(filepath.Join(m.Dir, "qemu.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("open QEMU's log: %w", err)
	}
	defer log.Close()
	program := "qemu-system-x86_64"
	if m.Arch == inventory.ARM64 {
		program = "qemu-system-aarch64"
	}
	cmd := exec.Command(program, args...)
	cmd.Dir = m.Dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{theirs} // file descriptor 3, see args
	var tpm *exec.Cmd
	if m.TPM {
		chip, socket, err := m.startTPM()
		if err != nil {
			conn.Close()
			return nil, err
		}
		defer socket.Close()
		tpm, cmd.ExtraFiles = chip, append(cmd.ExtraFiles, socket) // 4
	}
	if err := m.Net.Start(cmd); err != nil {
		conn.Close()
		if tpm != nil {
			_ = tpm.Process.Kill()
			_ = tpm.Wait()
		}
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	theirs.Close()
	run := &qemuRun{
		cmd: cmd,
		tpm: tpm,
		// Room for more resets than can happen while one command runs; the reader
		// must never wait for the watcher, who waits for the reader's answers.
		events: make(chan QMPEvent, 256),
		done:   make(chan struct{}),
		reset:  make(chan struct{}),
		index:  map[string]int{},
		gone:   m.faults.diskGone,
		size:   m.faults.diskSize,
		served: map[int]bool{},
	}
	order := m.order(boot)
	for i := range m.Disks {
		run.index[qemuDiskID(i)] = m.diskIndex(i, order)
	}
	for i := range m.NICs {
		run.index[qemuNICID(i)] = m.nicIndex(i, order)
	}
	run.index[qemuCDID] = qemuCDIndex(order)
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	run.qmp, err = newQMP(ctx, conn, func(e QMPEvent) {
		if e.Event == "RESET" || e.Event == "SHUTDOWN" {
			run.events <- e
		}
	})
	if err != nil {
		_ = cmd.Process.Kill()
		_ = run.wait()
		return nil, fmt.Errorf("%w: %s", err, qemuLastLine(log.Name()))
	}
	if err := m.prepare(ctx, run); err != nil {
		_ = cmd.Process.Kill()
		_ = run.wait()
		run.closeDisks(m)
		return nil, err
	}
	go m.watch(run)
	return run, nil
}

// prepare pulls the cables of the cards that are down, puts the medium into the
// drive, lets disks fail that shall, and the machine run, which waits for that:
// firmware looks once.
func (m *QEMU) prepare(ctx context.Context, run *qemuRun) error {
	for i, n := range m.NICs {
		if !n.Down {
			continue
		}
		if err := run.qmp.execute(ctx, "set_link", map[string]any{"name": qemuNICID(i), "up": false}, nil); err != nil {
			return err
		}
	}
	if m.medium != nil {
		if err := m.load(ctx, run); err != nil {
			return err
		}
	}
	if err := m.serveDisks(ctx, run); err != nil {
		return err
	}
	if run.halted = m.faults.dead; run.halted || !m.waits() {
		return nil
	}
	return run.qmp.execute(ctx, "cont", nil, nil)
}

// waits tells whether the machine starts only after prepare.
func (m *QEMU) waits() bool {
	return m.unplugged() || m.medium != nil || m.faults.dead || m.badDisks()
}

// unplugged tells whether a card of the machine is down.
func (m *QEMU) unplugged() bool {
	return slices.ContainsFunc(m.NICs, func(n QEMUNIC) bool { return n.Down })
}

// qemuLastLine is what QEMU said before it gave up.
func qemuLastLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); err == nil && size > 512 {
		_, _ = f.Seek(-512, io.SeekEnd)
	} else {
		_, _ = f.Seek(0, io.SeekStart)
	}
	tail, _ := io.ReadAll(f)
	return string(tail)
}

// watch follows one run to its end.
func (m *QEMU) watch(run *qemuRun) {
	defer close(run.done)
	gone := make(chan error, 1)
	go func() { gone <- run.wait() }()
	for {
		select {
		case e := <-run.events:
			m.handle(run, e)
		case err := <-gone:
			run.qmp.close()
			m.mu.Lock()
			if run.restore != nil {
				run.restore.Stop()
			}
			run.closeDisks(m)
			m.mu.Unlock()
			m.logger().Debug("machine's process ended", "machine", m.Name, "state", fmt.Sprint(err))
			return
		}
	}
}

func (m *QEMU) handle(run *qemuRun, e QMPEvent) {
	if change := m.follow(run, e); change != "" {
		m.changed(change)
	}
}

// follow is what an event means; it returns a change of the power that nobody
// outside has made.
func (m *QEMU) follow(run *qemuRun, e QMPEvent) MachineChange {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	m.mu.Lock()
	defer m.mu.Unlock()
	switch e.Event {
	case "RESET":
		var cause struct {
			Guest bool `json:"guest"`
		}
		_ = json.Unmarshal(e.Data, &cause) // false for what cannot be read
		if cause.Guest && e.Time().Sub(run.started) < qemuResetAgain {
			return ""
		}
		m.logger().Info("machine starts again", "machine", m.Name)
		run.started = e.Time()
		// What was stored while this reset was under way is for the next one.
		if e.n > run.armedAt {
			m.once = BootOnce{}
			if run.armed {
				run.restore = time.AfterFunc(qemuResetAgain, func() { m.restoreLater(run) })
			}
		}
		if hangs := cause.Guest && m.faults.hangs > 0; hangs || m.faults.dead {
			if hangs {
				m.faults.hangs--
			}
			if err := m.halt(ctx, run); err != nil && !run.ended() {
				m.logger().Error("hang at a restart", "machine", m.Name, "error", err)
			}
		}
		close(run.reset)
		run.reset = make(chan struct{})
		return MachineReset
	case "SHUTDOWN":
		// -no-shutdown keeps the process for its counters.
		m.logger().Info("machine went off", "machine", m.Name)
		run.off = true
		m.keepStats(ctx, run)
		_ = run.cmd.Process.Kill()
		return MachineOff
	}
	return ""
}

// PowerOff implements Machine.
func (m *QEMU) PowerOff(ctx context.Context) error {
	was, err := m.powerOff(ctx, false)
	if was {
		m.changed(MachineOff)
	}
	return err
}

// powerOff leaves the processor running until the end where it is cut.
func (m *QEMU) powerOff(ctx context.Context, cut bool) (was bool, err error) {
	m.mu.Lock()
	run := m.run
	if run == nil || run.ended() {
		m.mu.Unlock()
		return false, nil
	}
	if was = !run.off; was {
		run.off = true
		// The counters die with the process. Stopping the processor first makes
		// them final; a QEMU that does not answer is killed all the same.
		short, cancel := context.WithTimeout(ctx, 5*time.Second)
		if !cut {
			_ = run.qmp.execute(short, "stop", nil, nil)
		}
		m.keepStats(short, run)
		cancel()
	}
	_ = run.cmd.Process.Kill()
	m.mu.Unlock()
	select {
	case <-run.done:
		m.logger().Info("machine was switched off", "machine", m.Name)
		return was, nil
	case <-ctx.Done():
		return was, fmt.Errorf("power %q off: %w", m.Name, context.Cause(ctx))
	}
}

// Shutdown implements Machine.
func (m *QEMU) Shutdown(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.on() {
		return nil
	}
	if err := m.run.qmp.execute(ctx, "system_powerdown", nil, nil); err != nil && !errors.Is(err, errQMPClosed) {
		return fmt.Errorf("press the power button of %q: %w", m.Name, err)
	}
	return nil
}

// Reset implements Machine.
func (m *QEMU) Reset(ctx context.Context) error {
	m.mu.Lock()
	if !m.on() {
		m.mu.Unlock()
		return fmt.Errorf("reset %q: the machine is off", m.Name)
	}
	if m.obeyed() == BootHTTP || m.anew() {
		m.mu.Unlock()
		return m.restart(ctx)
	}
	if m.faults.dead {
		if err := m.halt(ctx, m.run); err != nil {
			m.mu.Unlock()
			return fmt.Errorf("reset %q: %w", m.Name, err)
		}
	}
	run, seen := m.run, m.run.reset
	if run.restore != nil {
		m.restoreOrder(ctx, run)
	}
	err := run.qmp.execute(ctx, "system_reset", nil, nil)
	m.mu.Unlock()
	if err != nil {
		return fmt.Errorf("reset %q: %w", m.Name, err)
	}
	select { // the answer comes before the deed
	case <-seen:
		return m.resume(ctx, run)
	case <-run.done:
		return fmt.Errorf("reset %q: the machine went off", m.Name)
	case <-ctx.Done():
		return fmt.Errorf("reset %q: %w", m.Name, context.Cause(ctx))
	}
}

func (m *QEMU) logger() *slog.Logger {
	if m.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return m.Log
}

func qemuDiskID(i int) string  { return "disk" + strconv.Itoa(i) }
func qemuNodeID(i int) string  { return "node" + strconv.Itoa(i) }
func qemuDriveID(i int) string { return "drive" + strconv.Itoa(i) }
func qemuNICID(i int) string   { return "nic" + strconv.Itoa(i) }

// The indexes of a start with and without override never meet: QEMU refuses one
// that another device still holds.
