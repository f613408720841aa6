package testenv

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"github.com/bougou/go-ipmi/pkg/bmc"
	"github.com/bougou/go-ipmi/pkg/clock"
	"github.com/bougou/go-ipmi/pkg/crypto"
	"github.com/bougou/go-ipmi/pkg/hal"
	"github.com/bougou/go-ipmi/pkg/handlers"
	"github.com/bougou/go-ipmi/pkg/server"
	"github.com/bougou/go-ipmi/pkg/types"
)

// IPMIOptions configure a virtual IPMI BMC.
type IPMIOptions struct {
	// Conn is the socket to serve, e.g. one opened in a network namespace; the
	// BMC closes it. Nil listens on Addr, default 127.0.0.1:0.
	Conn net.PacketConn
	Addr string
	// User and Password of the one account, an administrator.
	User, Password string
	// Suites are the RMCP+ cipher suites on offer; default 3 and 17.
	Suites []int
	// Sessions at once; default 4, the least that the specification demands.
	Sessions int
	Machine  Machine
	Faults   BMCFaults
}

// IPMIBMC is a BMC that speaks IPMI 2.0 over RMCP+ and switches a Machine.
type IPMIBMC struct {
	*bmcFront
	addr   string
	user   string
	pass   string
	bmc    *bmc.BMC
	server *server.Server
	done   chan struct{}
	once   sync.Once
}

// NewIPMI starts it; Close ends it.
func NewIPMI(o IPMIOptions) (*IPMIBMC, error) {
	if o.Machine == nil {
		return nil, errors.New("start IPMI BMC: no machine")
	}
	if len(o.Password) > bmc.MaxPasswordLen {
		return nil, fmt.Errorf("start IPMI BMC: a password has at most %d bytes", bmc.MaxPasswordLen)
	}
	if len(o.Suites) == 0 {
		o.Suites = []int{3, 17}
	}
	suites := make([]types.CipherSuiteID, 0, len(o.Suites))
	for _, s := range o.Suites {
		if !bmc.SupportedCipherSuite(types.CipherSuiteID(s)) {
			return nil, fmt.Errorf("start IPMI BMC: cipher suite %d is not supported", s)
		}
		suites = append(suites, types.CipherSuiteID(s))
	}
	if o.Conn == nil {
		if o.Addr == "" {
			o.Addr = "127.0.0.1:0"
		}
		conn, err := net.ListenPacket("udp", o.Addr)
		if err != nil {
			return nil, fmt.Errorf("start IPMI BMC: %w", err)
		}
		o.Conn = conn
	}
	b := &IPMIBMC{
		bmcFront: newBMCFront(o.Machine, o.Faults),
		addr:     o.Conn.LocalAddr().String(),
		user:     o.User,
		pass:     o.Password,
		done:     make(chan struct{}),
	}
	info := bmc.DeviceInfo{
		DeviceID: 32, DeviceRevision: 1, FirmwareMajor: 1, IPMIVersion: 0x20,
		ManufacturerID: 0x000157, ProductID: 1,
		AdditionalDeviceSupport: 0x80, // chassis device
	}
	var guid [16]byte
	copy(guid[:], crypto.RandomBytes(16))
	b.bmc = bmc.New(info, guid, ipmiHAL{b}, bmc.WithCipherSuites(suites), bmc.WithV15Disabled())
	if o.Sessions > 0 {
		b.bmc.Sessions = bmc.NewSessionStoreWithOptions(clock.Real, bmc.WithMaxSessions(o.Sessions))
		b.bmc.Sessions.SetOnRemove(b.bmc.SOL.DeactivateBySession)
	}
	user, err := b.bmc.Users.Add(2, o.User)
	if err != nil {
		_ = o.Conn.Close()
		return nil, fmt.Errorf("start IPMI BMC: add user %q: %w", o.User, err)
	}
	user.SetPassword([]byte(o.Password))
	user.Enabled = true
	user.ChannelAccess[1] = bmc.UserChannelAccess{MaxPrivilege: bmc.PrivilegeLevelAdministrator, Enabled: true}

	conn := &ipmiConn{PacketConn: o.Conn, front: b}
	registry := handlers.NewRegistry()
	registry.Use(func(next handlers.Handler) handlers.Handler { return ipmiMiddleware{b, conn, next} })
	handlers.RegisterAllHandlers(registry)
	b.server = server.NewServer(b.bmc, conn, server.WithHandlerRegistry(registry))
	go func() {
		defer close(b.done)
		_ = b.server.Serve(context.Background())
	}()
	return b, nil
}

// Addr is host:port.
func (b *IPMIBMC) Addr() string { return b.addr }

// URL is what a declared machine names.
func (b *IPMIBMC) URL() string { return "ipmi://" + b.addr }

// Close stops serving and closes the socket.
func (b *IPMIBMC) Close() error {
	var err error
	b.once.Do(func() {
		close(b.closed)
		err = b.server.Close()
		<-b.done
	})
	return err
}

// admit sets the account's password to one that nobody knows while logins are
// to be refused: the client then fails as with a wrong password.
func (b *IPMIBMC) admit(allowed bool) {
	password := []byte(b.pass)
	if !allowed {
		password = crypto.RandomBytes(16)
	}
	_ = b.bmc.Users.Update(2, func(u *bmc.User) error {
		u.SetPassword(password)
		return nil
	})
}

// ipmiConn is the BMC's socket: it sees logins, and loses packets on demand.
type ipmiConn struct {
	net.PacketConn
	front *IPMIBMC
	lose  atomic.Bool // the next answer
}

func (c *ipmiConn) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		n, addr, err := c.PacketConn.ReadFrom(p)
		if err != nil {
			return n, addr, err
		}
		if c.front.now().Hang {
			c.front.record("read", "packet not answered", false)
			continue
		}
		if user, ok := ipmiLogin(p[:n]); ok {
			c.front.admit(c.front.login(user))
		}
		return n, addr, nil
	}
}

func (c *ipmiConn) WriteTo(p []byte, addr net.Addr) (int, error) {
	if c.lose.Swap(false) || c.front.now().Hang {
		return len(p), nil
	}
	return c.PacketConn.WriteTo(p, addr)
}

// ipmiLogin recognises RAKP message 1 (IPMI 2.0, 13.20), by which the user is
// named and after which a wrong password shows.
func ipmiLogin(p []byte) (user string, ok bool) {
	const header = 16
	if len(p) < header+28 || p[4] != 0x06 || p[5]&0x3f != byte(types.PayloadTypeRAKPMessage1) {
		return "", false
	}
	if int(binary.LittleEndian.Uint16(p[14:16])) != len(p)-header {
		return "", false
	}
	body := p[header:]
	name := int(body[27])
	if len(body) < 28+name {
		return "", false
	}
	return string(body[28 : 28+name]), true
}

// ipmiMiddleware logs every command and applies the faults.
type ipmiMiddleware struct {
	bmc  *IPMIBMC
	conn *ipmiConn
	next handlers.Handler
}

func (m ipmiMiddleware) Handle(ctx context.Context, h *handlers.HandlerContext, data []byte) ([]byte, types.CompletionCode, error) {
	b := m.bmc
	if h.Session == nil {
		b.record("read", h.Command.Name, false)
		return m.next.Handle(ctx, h, data)
	}
	b.loggedIn()
	faults := b.now()
	if !b.wait(faults.Delay) {
		return nil, types.CodeNodeBusy, nil
	}
	command := h.Command
	switch {
	case command.NetFn == types.CommandCloseSession.NetFn && command.ID == types.CommandCloseSession.ID:
		b.record("logout", "", true)
	case command.NetFn == types.CommandSetSessionPrivilegeLevel.NetFn && command.ID == types.CommandSetSessionPrivilegeLevel.ID:
	case faults.Busy:
		b.record("read", command.Name+": busy", false)
		return nil, types.CodeNodeBusy, nil
	case faults.CutShort:
		b.record("read", command.Name+": cut short", false)
		return []byte{1}, types.CodeOK, nil
	case command.NetFn == types.CommandSetSystemBootOptions.NetFn && command.ID == types.CommandSetSystemBootOptions.ID:
		if code, done := m.setParameter(data, faults); done {
			return nil, code, nil
		}
	case command.NetFn == types.CommandChassisControl.NetFn && command.ID == types.CommandChassisControl.ID:
		if faults.LoseReply {
			defer m.conn.lose.Store(true)
		}
	default:
		b.record("read", command.Name, false)
	}
	return m.next.Handle(ctx, h, data)
}

// setParameter answers what go-ipmi's server only nods at: parameter 0, whether
// a change is in progress, which nobody needs here but ipmitool sends, and
// parameter 3, by which the override is kept from expiring.
func (m ipmiMiddleware) setParameter(data []byte, faults BMCFaults) (types.CompletionCode, bool) {
	if len(data) < 2 {
		return 0, false
	}
	switch data[0] & 0x7f {
	case 0:
		return types.CodeOK, true
	case 3:
		if faults.RejectParam3 {
			return types.CodeParameterNotSupported, true
		}
		m.bmc.mu.Lock()
		m.bmc.keep = data[1]&0x08 != 0
		m.bmc.mu.Unlock()
		return types.CodeOK, true
	}
	return 0, false
}

// ipmiHAL is the hardware as go-ipmi's server sees it: a chassis.
type ipmiHAL struct{ bmc *IPMIBMC }

func (h ipmiHAL) Chassis() hal.ChassisHAL { return ipmiChassis(h) }
func (ipmiHAL) Sensors() hal.SensorHAL    { return nil }
func (ipmiHAL) Storage() hal.StorageHAL   { return nil }
func (ipmiHAL) Network() hal.NetworkHAL   { return nil }
func (ipmiHAL) GPIO() hal.GPIOHAL         { return nil }
func (ipmiHAL) I2C() hal.I2CHAL           { return nil }
func (ipmiHAL) Console() hal.ConsoleHAL   { return nil }
func (ipmiHAL) Close() error              { return nil }

type ipmiChassis struct{ bmc *IPMIBMC }

func (c ipmiChassis) PowerState(context.Context) (bool, error) { return c.bmc.powered(), nil }

func (c ipmiChassis) SetPower(ctx context.Context, on bool) error {
	if on {
		return c.bmc.power(ctx, "power-on", c.bmc.machine.PowerOn)
	}
	return c.bmc.power(ctx, "power-off", c.bmc.machine.PowerOff)
}

// PowerCycle of a machine that is off is refused, as the specification
// recommends (28.3).
func (c ipmiChassis) PowerCycle(ctx context.Context) error {
	if !c.bmc.machine.Powered() {
		return types.CodeNotSupported
	}
	return c.bmc.power(ctx, "cycle", func(ctx context.Context) error {
		if err := c.bmc.machine.PowerOff(ctx); err != nil {
			return err
		}
		return c.bmc.machine.PowerOn(ctx)
	})
}

func (c ipmiChassis) ColdReset(ctx context.Context) error {
	if !c.bmc.machine.Powered() {
		return types.CodeNotSupported
	}
	return c.bmc.power(ctx, "reset", c.bmc.machine.Reset)
}

// WarmReset is what go-ipmi calls for a soft shutdown.
func (c ipmiChassis) WarmReset(ctx context.Context) error {
	return c.bmc.power(ctx, "shutdown", c.bmc.machine.Shutdown)
}

func (c ipmiChassis) Identify(context.Context, uint8) error { return nil }

func (c ipmiChassis) IntrusionState(context.Context) (bool, error) { return false, hal.ErrNotSupported }

func (c ipmiChassis) SetBootFlags(_ context.Context, flags *types.BootOptionParam_BootFlags) error {
	if flags.Persist && flags.BootFlagsValid {
		return types.CodeRequestDataFieldInvalid // one boot only
	}
	once := BootOnce{UEFI: bool(flags.BIOSBootType)}
	switch {
	case !flags.BootFlagsValid, flags.BootDeviceSelector == types.BootDeviceSelectorNoOverride:
		once = BootOnce{}
	case flags.BootDeviceSelector == types.BootDeviceSelectorForcePXE:
		once.Device = BootPXE
	case flags.BootDeviceSelector == types.BootDeviceSelectorForceHardDrive:
		once.Device = BootDisk
	default:
		return types.CodeRequestDataFieldInvalid
	}
	return c.bmc.setBoot(once)
}

func (c ipmiChassis) GetBootFlags(context.Context) (*types.BootOptionParam_BootFlags, error) {
	once := c.bmc.boot()
	flags := &types.BootOptionParam_BootFlags{}
	switch once.Device {
	case BootPXE:
		flags.BootDeviceSelector = types.BootDeviceSelectorForcePXE
	case BootDisk:
		flags.BootDeviceSelector = types.BootDeviceSelectorForceHardDrive
	default:
		return flags, nil
	}
	flags.BootFlagsValid, flags.BIOSBootType = true, types.BIOSBootType(once.UEFI)
	return flags, nil
}

func (c ipmiChassis) SetBootInfoAcknowledge(context.Context, *types.BootOptionParam_BootInfoAcknowledge) error {
	return nil
}

func (c ipmiChassis) GetBootInfoAcknowledge(context.Context) (*types.BootOptionParam_BootInfoAcknowledge, error) {
	return nil, hal.ErrNotSupported
}
