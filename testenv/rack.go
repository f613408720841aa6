package testenv

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"recast/inventory"
)

// RackOptions describe a virtual rack. The zero value of every field but Name
// and Dir works.
type RackOptions struct {
	// Name makes the namespace's: recast-NAME. Several racks live side by side.
	Name string
	// Dir holds everything of the rack: disks, consoles, the server's data. It
	// is made where it does not stand, and survives Close.
	Dir string
	// Machines; nil for RackDefault.
	Machines []RackMachine
	// DiskSize in bytes of the disks that say none; 0: 2 GiB.
	DiskSize int64
	// Segments are bridges beside NetBridge, for RackNIC.
	Segments []string
	Log      *slog.Logger
}

// RackMachine is one machine of a rack and the BMC before it.
type RackMachine struct {
	Name     string
	Firmware QEMUFirmware
	Arch     inventory.Arch // "": amd64
	BMC      RackBMC
	MemoryMB int        // 0: 1024
	Disks    []RackDisk // nil: one with the rack's size
	NICs     []RackNIC  // nil: one on NetBridge
	NetBoot  QEMUNetBoot
	// SecureBoot: with Microsoft's keys.
	SecureBoot bool
	TPM        bool
	// NetworkFirst: its boot order begins with the network, as a gate needs it.
	NetworkFirst bool
	// OwnOrder: it boots by what stands in its variables, as a gate that refuses needs it; see QEMU.
	OwnOrder bool
	// Drive is a virtual CD drive, which a Redfish BMC offers.
	Drive bool
	// Simulated plays it in this process; its Firmware may be any SimFirmware, its
	// disks have a size alone, and the fields of real firmware mean nothing.
	Simulated bool
	// Rack and Unit are where it stands; "" and 0: in "lab", by its number.
	Rack string
	Unit int
	// Cable to its network; faults of the link are over it.
	Cable Cable
	// Faults of the BMC from the start; SetFaults changes them later.
	Faults BMCFaults
}

// RackDisk is one disk, filled with 0xA5 when it is made.
type RackDisk struct {
	Size    int64 // bytes; 0: the rack's DiskSize
	Bus     DiskBus
	Discard bool
}

// RackNIC is one network card.
type RackNIC struct {
	Segment string // "": NetBridge
	NoROM   bool
	Down    bool // its cable is not plugged in
}

// RackBMC is the protocol of a BMC.
type RackBMC string

const (
	BMCIPMI    RackBMC = "ipmi"
	BMCRedfish RackBMC = "redfish"
	BMCNone    RackBMC = "none"
)

// RackDefault is the smallest rack that has both of everything: BIOS behind
// IPMI with a disk that ignores discards, UEFI behind Redfish.
func RackDefault() []RackMachine {
	return []RackMachine{
		{Name: "r1u01", Firmware: FirmwareBIOS, BMC: BMCIPMI, Disks: []RackDisk{{Bus: BusAHCI}}},
		{Name: "r1u02", Firmware: FirmwareUEFI, BMC: BMCRedfish, Disks: []RackDisk{{Bus: BusAHCI, Discard: true}}},
	}
}

// RackNode is a machine that was built.
type RackNode struct {
	*QEMU
	Spec RackMachine
	MAC  inventory.MAC // of the first card
	IP   netip.Addr    // reserved for it in the YAML
	MachineBMC
}

// RackSimulated is a simulated machine that was built.
type RackSimulated struct {
	*Simulated
	Spec RackMachine
	IP   netip.Addr
}

// rackMember is what both kinds are to the rack.
type rackMember struct {
	MachineBMC
	spec         RackMachine
	machine      Machine
	mac          inventory.MAC
	ip           netip.Addr
	uuid, serial string
	disk, dir    string
	qemu         *QEMU      // or
	simulated    *Simulated // one of these
	faults       []Fault
	cable        Cable // with its faults
	board        Board // that is in; zero for its own
}

// Rack is a network namespace with machines, each powered off at first and
// switched by its BMC, and room for a server. It is closed by Close; if this
// process dies, its processes die with it, and RemoveRack clears the rest.
type Rack struct {
	Options RackOptions
	Net     *Net
	Nodes   []*RackNode
	// Simulated are beside the Nodes, on the wire of NetBridge.
	Simulated []*RackSimulated
	// The account of every BMC, made with the rack's folder and kept in it.
	BMCUser, BMCPassword string

	operator *os.File // the listening socket of the host, for the server
	addr     string
	servers  []*RackServer
	members  []rackMember     // of both kinds, in the order of Options.Machines
	wire     *SimWire         // nil without simulated machines
	links    map[string]*Link // in cables that are bad, by the interface
}

// Addresses inside every rack. The namespaces are separate, so all may share them.
var (
	rackServer = netip.MustParsePrefix("10.77.0.1/24") // the server's, on the bridge
	rackSims   = netip.MustParseAddr("10.77.0.2")      // of the host of the simulated machines
	rackFirst  = netip.MustParseAddr("10.77.0.11")     // of the machines
	rackBMC    = netip.MustParseAddr("10.78.0.11")     // of the BMCs
	// Of a rack with more machines than fit below its pool.
	rackServerMany = netip.MustParsePrefix("10.77.0.1/16")
	rackFirstMany  = netip.MustParseAddr("10.77.1.1")
)

// rackFew machines have the addresses below the pool.
const rackFew = 80

// addresses are the server's, with the subnet, and the first machine's.
func (r *Rack) addresses() (server netip.Prefix, first netip.Addr) {
	if len(r.Options.Machines) > rackFew {
		return rackServerMany, rackFirstMany
	}
	return rackServer, rackFirst
}

const (
	rackPrefix = "recast-"
	rackFill   = 0xA5 // neither zeros nor a partition table
)

// RackNamespace is the network namespace of the rack of that name.
func RackNamespace(name string) string { return rackPrefix + name }

// RemoveRack clears what a killed rack of that name left: processes and
// namespace. Its folder is the caller's.
func RemoveRack(name string) error {
	return errors.Join(RemoveNet(RackNamespace(name)), RemoveNet(RackNamespace(name)+"-"+simHost))
}

// NewRack builds a rack: every machine is off, every BMC answers.
func NewRack(ctx context.Context, o RackOptions) (r *Rack, err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Machines == nil {
		o.Machines = RackDefault()
	}
	if o.DiskSize == 0 {
		o.DiskSize = 2 << 30
	}
	r = &Rack{Options: o}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("build rack %q: %w", o.Name, err), r.Close())
			r = nil
		}
	}()
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return r, err
	}
	if r.BMCUser, r.BMCPassword, err = rackAccount(o.Dir); err != nil {
		return r, err
	}
	server, _ := r.addresses()
	if r.Net, err = NewNet(RackNamespace(o.Name), server); err != nil {
		return r, err
	}
	// Opened out here and handed to each server that is started: the one way in,
	// and it keeps its port over restarts.
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return r, err
	}
	defer l.Close()
	r.addr = l.Addr().String()
	if r.operator, err = l.(*net.TCPListener).File(); err != nil {
		return r, err
	}
	for _, name := range o.Segments {
		if err := r.Net.AddBridge(name); err != nil {
			return r, err
		}
	}
	for i, m := range o.Machines {
		add := r.add
		if m.Simulated {
			add = r.addSimulated
		}
		if err := add(ctx, i, m); err != nil {
			return r, fmt.Errorf("machine %q: %w", m.Name, err)
		}
		if err := r.setCable(&r.members[i], m.Cable); err != nil {
			return r, fmt.Errorf("machine %q: %w", m.Name, err)
		}
	}
	return r, nil
}

// Operator is host:port of the server's API as the host reaches it.
func (r *Rack) Operator() string { return r.addr }

// add builds machine number i.
func (r *Rack) add(ctx context.Context, i int, m RackMachine) (err error) {
	dir := filepath.Join(r.Options.Dir, m.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	_, first := r.addresses()
	node := &RackNode{
		Spec: m,
		MAC:  rackMAC(i, 0),
		IP:   rackAddr(first, i),
		QEMU: &QEMU{
			Name: m.Name, Firmware: m.Firmware, Arch: m.Arch, NetBoot: m.NetBoot, SecureBoot: m.SecureBoot, TPM: m.TPM, NetworkFirst: m.NetworkFirst, OwnOrder: m.OwnOrder, Drive: m.Drive, MemoryMB: m.MemoryMB, Dir: dir, Net: r.Net,
			UUID: rackUUID(i), Serial: rackSerial(i),
			Log: r.Options.Log,
		},
	}
	if m.NICs == nil {
		m.NICs = []RackNIC{{}}
	}
	for j, c := range m.NICs {
		nic := QEMUNIC{MAC: string(rackMAC(i, j)), Tap: fmt.Sprintf("tap%d-%d", i, j), NoROM: c.NoROM, Down: c.Down}
		if err := r.Net.AddTap(nic.Tap, cmp.Or(c.Segment, NetBridge)); err != nil {
			return err
		}
		node.NICs = append(node.NICs, nic)
	}
	if m.Disks == nil {
		m.Disks = []RackDisk{{}}
	}
	for j, d := range m.Disks {
		if d.Size == 0 {
			d.Size = r.Options.DiskSize
		}
		disk := QEMUDisk{
			Path: filepath.Join(dir, fmt.Sprintf("disk%d.img", j)), Size: d.Size,
			Serial: fmt.Sprintf("%s-%d", rackSerial(i), j), Bus: d.Bus, Discard: d.Discard,
		}
		if disk.Size, err = rackFillDisk(ctx, disk.Path, d.Size); err != nil {
			return err
		}
		node.Disks = append(node.Disks, disk)
	}
	r.Nodes = append(r.Nodes, node) // from here on Close ends it
	node.MachineBMC, err = r.newBMC(i, m, dir, node.QEMU, redfishHardwareOf(node.QEMU))
	r.members = append(r.members, rackMember{spec: m, machine: node.QEMU, mac: node.MAC, ip: node.IP, uuid: node.UUID, serial: node.Serial,
		disk: node.Disks[0].Path, dir: dir, MachineBMC: node.MachineBMC, qemu: node.QEMU})
	return err
}

// simDisk is the size of a simulated machine's disk that says none.
const simDisk = 16 * osMiB

// addSimulated builds machine number i in this process.
func (r *Rack) addSimulated(_ context.Context, i int, m RackMachine) (err error) {
	server, first := r.addresses()
	if r.wire == nil {
		if r.wire, err = r.Net.NewSimWire(NetBridge, netip.PrefixFrom(rackSims, server.Bits())); err != nil {
			return err
		}
	}
	dir := filepath.Join(r.Options.Dir, m.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if m.Disks == nil {
		m.Disks = []RackDisk{{}}
	}
	var disks []inventory.DiskID
	for j, d := range m.Disks {
		disks = append(disks, inventory.DiskID{Serial: fmt.Sprintf("%s-%d", rackSerial(i), j), Size: cmp.Or(d.Size, simDisk)})
	}
	firmware := SimFirmware(m.Firmware)
	// Its BMC stands where those of the others do.
	sim, err := NewSimulated(SimulatedOptions{Name: m.Name, Dir: dir, MAC: inventory.MAC(fmt.Sprintf("52:54:01:77:%02x:%02x", i>>8, i&0xff)),
		UUID: rackUUID(i), Serial: rackSerial(i), UEFI: firmware.UEFI(), Disks: disks, Fill: rackFill, FillEnds: true, Wire: r.wire, Firmware: firmware, NetworkFirst: m.NetworkFirst, TPM: m.TPM,
		Log: func(format string, args ...any) { r.Options.Log.Debug(fmt.Sprintf(format, args...)) }})
	if err != nil {
		return err
	}
	r.Simulated = append(r.Simulated, &RackSimulated{Simulated: sim, Spec: m, IP: rackAddr(first, i)})
	sim.MachineBMC, err = r.newBMC(i, m, dir, sim, RedfishHardware{MACs: []string{string(sim.Options.MAC)}, Cores: 2, MemoryMiB: 1024, Disks: disks, SecureBoot: redfishSecureBoot(firmware.UEFI(), false)})
	r.members = append(r.members, rackMember{spec: m, machine: sim, mac: sim.Options.MAC, ip: rackAddr(first, i), uuid: sim.Options.UUID, serial: sim.Options.Serial,
		disk: sim.Disks[0].Path, dir: dir, MachineBMC: sim.MachineBMC, simulated: sim})
	return err
}

// rackMAC is that of card j of QEMU machine i.
func rackMAC(i, j int) inventory.MAC {
	i += 0x0b
	return inventory.MAC(fmt.Sprintf("52:54:00:%02x:%02x:%02x", 0x77+i>>8, j, i&0xff))
}

func rackUUID(i int) string   { return fmt.Sprintf("7265636a-7374-4c61-8b00-%012x", i+1) }
func rackSerial(i int) string { return fmt.Sprintf("LAB%04d", i+1) }

// newBMC starts the BMC of machine i, in the namespace.
func (r *Rack) newBMC(i int, m RackMachine, dir string, machine Machine, hardware RedfishHardware) (made MachineBMC, err error) {
	if m.BMC == BMCNone || m.BMC == "" {
		return made, nil
	}
	addr := rackAddr(rackBMC, i)
	if err := r.Net.AddAddr(addr); err != nil {
		return made, err
	}
	switch m.BMC {
	case BMCIPMI:
		var conn net.PacketConn
		err := r.Net.Do(func() (err error) {
			conn, err = net.ListenPacket("udp4", netip.AddrPortFrom(addr, 623).String())
			return err
		})
		if err != nil {
			return made, err
		}
		made.IPMI, err = NewIPMI(IPMIOptions{Conn: conn, User: r.BMCUser, Password: r.BMCPassword,
			UUID: rackUUID(i), Serial: rackSerial(i), Machine: machine, Faults: m.Faults})
		return made, err
	case BMCRedfish:
		var l net.Listener
		err := r.Net.Do(func() (err error) {
			l, err = net.Listen("tcp4", netip.AddrPortFrom(addr, 443).String())
			return err
		})
		if err != nil {
			return made, err
		}
		certificate, err := rackCertificate(dir)
		if err != nil {
			return made, errors.Join(err, l.Close())
		}
		var console net.Listener
		if _, ok := machine.(Consoled); ok {
			if err := r.Net.Do(func() (err error) {
				console, err = net.Listen("tcp4", netip.AddrPortFrom(addr, 22).String())
				return err
			}); err != nil {
				return made, errors.Join(err, l.Close())
			}
		}
		made.Redfish, err = NewRedfish(RedfishOptions{Listener: l, SSH: console, Certificate: certificate, User: r.BMCUser, Password: r.BMCPassword,
			UUID: rackUUID(i), Serial: rackSerial(i), Machine: machine, Faults: m.Faults, Hardware: hardware,
			Dial: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
				err = r.Net.Do(func() error {
					conn, err = (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, network, addr)
					return err
				})
				return conn, err
			}})
		return made, err
	}
	return made, fmt.Errorf("unknown BMC %q, want ipmi, redfish or none", m.BMC)
}

// Node finds a machine by name, or nil.
func (r *Rack) Node(name string) *RackNode {
	for _, n := range r.Nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// Close switches everything off and removes the namespace. The folder stays. A
// second Close does nothing.
func (r *Rack) Close() error {
	var errs []error
	for _, s := range r.servers {
		s.Kill()
	}
	r.servers = nil
	for _, n := range r.Nodes {
		// First the BMC: nobody shall switch the machine on again.
		errs = append(errs, n.closeBMC(), n.PowerOff(context.Background()), n.closeDisks())
	}
	r.Nodes = nil
	for _, s := range r.Simulated {
		errs = append(errs, s.Close())
	}
	r.Simulated = nil
	for _, l := range r.links {
		errs = append(errs, l.Close())
	}
	r.links = nil
	if r.wire != nil {
		errs = append(errs, r.wire.Close())
		r.wire = nil
	}
	if r.operator != nil {
		errs = append(errs, r.operator.Close())
		r.operator = nil
	}
	if r.Net != nil {
		errs = append(errs, r.Net.Close())
	}
	return errors.Join(errs...)
}

func rackAddr(first netip.Addr, i int) netip.Addr {
	for range i {
		first = first.Next()
	}
	return first
}

// rackFillDisk makes a disk that holds something unknown. One that stands is left
// as it is and has the size that it has: a rack that is started again finds its
// disks.
func rackFillDisk(ctx context.Context, path string, size int64) (int64, error) {
	if info, err := os.Stat(path); err == nil {
		return info.Size(), nil
	}
	f, err := os.Create(path + ".new")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	pattern := bytes.Repeat([]byte{rackFill}, osMiB)
	for left := size; left > 0; {
		if err := ctx.Err(); err != nil {
			return 0, fmt.Errorf("fill disk: %w", err)
		}
		n, err := f.Write(pattern[:min(left, osMiB)])
		if err != nil {
			return 0, fmt.Errorf("fill disk: %w", err)
		}
		left -= int64(n)
	}
	if err := f.Close(); err != nil {
		return 0, fmt.Errorf("fill disk: %w", err)
	}
	return size, os.Rename(path+".new", path)
}

var _ io.Closer = (*Rack)(nil)
