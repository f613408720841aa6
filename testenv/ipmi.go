package testenv

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bougou/go-ipmi/pkg/bmc"
	"github.com/bougou/go-ipmi/pkg/clock"
	"github.com/bougou/go-ipmi/pkg/crypto"
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
	// User and Password of the first account, an administrator. More are made over
	// the wire; all last as long as the process does, resets of the BMC included.
	User, Password string
	// Suites are the RMCP+ cipher suites on offer; default 3 and 17.
	Suites []int
	// Sessions at once; default 4, the least that the specification demands.
	Sessions int
	// Idle ends a session that sent nothing for so long; default 60 s.
	Idle time.Duration
	// UUID and Serial are what the device's GUID and the FRU inventory say; a
	// random one and none by default.
	UUID, Serial string
	// Manufacturer is the IANA number of the vendor; default 343, Intel. The disk of
	// a UEFI machine of SupermicroIANA is the boot device 9 instead of 2.
	Manufacturer uint32
	// Seed decides which packets LoseIn and LoseOut take.
	Seed    uint64
	Machine Machine
	Faults  BMCFaults
}

// ipmiChannel is the number of the LAN channel.
const ipmiChannel = 1

// IPMIBMC is a BMC that speaks IPMI 2.0 over RMCP+ and switches a Machine.
type IPMIBMC struct {
	*bmcFront
	addr    string
	bmc     *bmc.BMC
	server  *server.Server
	conn    *ipmiConn
	options ipmiBootOptions
	sel     ipmiSEL
	led     ipmiLED
	suites  []types.CipherSuiteID

	hardware *ipmiHAL
	guid     atomic.Pointer[[16]byte] // of the system

	opened ipmiOpen // under the lock of the socket
	done   chan struct{}
	once   sync.Once
}

// ipmiUsers is how many accounts it has room for, as real ones: 10 to 16.
const ipmiUsers = 16

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
	guid, err := ipmiGUID(o.UUID)
	if err != nil {
		_ = o.Conn.Close()
		return nil, fmt.Errorf("start IPMI BMC: %w", err)
	}
	if o.Idle == 0 {
		o.Idle = bmc.DefaultInactivityTimeout
	}
	b := &IPMIBMC{
		bmcFront: newBMCFront(o.Machine, o.Faults),
		addr:     o.Conn.LocalAddr().String(),
		done:     make(chan struct{}),
	}
	b.expiry = ipmiBootExpiry
	b.watch()
	info := bmc.DeviceInfo{
		DeviceID: 32, DeviceRevision: 1, FirmwareMajor: 1, IPMIVersion: 0x02, // 2.0: the digits stand the other way round (20.1)

		ManufacturerID: cmp.Or(o.Manufacturer, 343), ProductID: 1,
		AdditionalDeviceSupport: 0x80 | 0x04 | 0x01, // chassis, SEL, sensors
	}
	hardware, err := newIPMIHAL(b, o.Serial)
	if err != nil {
		_ = o.Conn.Close()
		return nil, fmt.Errorf("start IPMI BMC: %w", err)
	}
	b.hardware = hardware
	b.guid.Store(&guid)
	b.suites = suites
	b.bmc = bmc.New(info, guid, hardware, bmc.WithCipherSuites(suites), bmc.WithV15Disabled())
	// The socket ends idle sessions, to the moment.
	limits := []bmc.SessionStoreOption{bmc.WithInactivityTimeout(o.Idle)}
	if o.Sessions > 0 {
		limits = append(limits, bmc.WithMaxSessions(o.Sessions))
	}
	b.bmc.Sessions = bmc.NewSessionStoreWithOptions(clock.Real, limits...)
	b.bmc.Sessions.SetOnRemove(b.bmc.SOL.DeactivateBySession)
	if err := b.addUsers(o); err != nil {
		_ = o.Conn.Close()
		return nil, fmt.Errorf("start IPMI BMC: add user %q: %w", o.User, err)
	}
	b.conn = newIPMIConn(o.Conn, b, o.Idle, o.Seed)
	registry := handlers.NewRegistry()
	registry.Use(func(next handlers.Handler) handlers.Handler { return ipmiMiddleware{b, next} })
	handlers.RegisterAllHandlers(registry)
	b.register(registry)
	b.server = server.NewServer(b.bmc, b.conn, server.WithHandlerRegistry(registry))
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

// ipmiOpen is what it leaves open to anybody.
type ipmiOpen struct{ cipherZero, anonymous, v15 bool }

// leaveOpen follows the faults; the lock of the socket is held.
func (b *IPMIBMC) leaveOpen(f BMCFaults) {
	want := ipmiOpen{f.CipherZero, f.Anonymous, f.OldProtocol}
	if want == b.opened {
		return
	}
	b.opened = want
	suites := b.suites
	if want.cipherZero && !slices.Contains(suites, 0) {
		suites = append([]types.CipherSuiteID{0}, suites...)
	}
	b.bmc.SetCipherSuites(suites)
	protocol := bmc.WithV15Disabled()
	if want.v15 {
		protocol = bmc.WithV15AuthTypes(bmc.DefaultV15AuthTypes)
	}
	protocol(b.bmc)
	_ = b.bmc.Users.Update(1, func(u *bmc.User) error { // it is always there
		u.Enabled, u.ChannelAccess = want.anonymous, map[uint8]bmc.UserChannelAccess{}
		if want.anonymous {
			u.ChannelAccess = ipmiAdministrator()
		}
		return nil
	})
}

func ipmiAdministrator() map[uint8]bmc.UserChannelAccess {
	return map[uint8]bmc.UserChannelAccess{ipmiChannel: {MaxPrivilege: bmc.PrivilegeLevelAdministrator, Enabled: true}}
}

// addUsers makes the table of accounts, where the first is the nameless one of
// the specification (22.28): without a right here, unless asked for.
func (b *IPMIBMC) addUsers(o IPMIOptions) error {
	b.bmc.Users = bmc.NewUserStore(bmc.WithMaxUsers(ipmiUsers))
	if err := b.bmc.Users.Update(1, func(u *bmc.User) error { u.Enabled = false; return nil }); err != nil {
		return err
	}
	return b.bmc.Users.Upsert(2, func(u *bmc.User) error {
		u.Name, u.Enabled, u.ChannelAccess = o.User, true, ipmiAdministrator()
		u.SetPassword([]byte(o.Password))
		return nil
	})
}

// SetBoard puts another board behind the BMC.
func (b *IPMIBMC) SetBoard(board Board) error {
	guid, err := ipmiGUID(board.UUID)
	if err != nil {
		return fmt.Errorf("swap the board: %w", err)
	}
	if err := b.hardware.storage.fru.setSerial(board.Serial); err != nil {
		return fmt.Errorf("swap the board: %w", err)
	}
	b.guid.Store(&guid)
	return nil
}

// ipmiGUID is a UUID as IPMI sends it, the last byte first (20.8).
func ipmiGUID(uuid string) (guid [16]byte, err error) {
	if uuid == "" {
		copy(guid[:], crypto.RandomBytes(16))
		return guid, nil
	}
	raw, err := hex.DecodeString(strings.ReplaceAll(uuid, "-", ""))
	if err != nil || len(raw) != len(guid) {
		return guid, fmt.Errorf("UUID %q: want 32 hexadecimal digits", uuid)
	}
	slices.Reverse(raw)
	copy(guid[:], raw)
	return guid, nil
}
