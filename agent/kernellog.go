package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// kernelWarning is the least grave of the kernel's messages that go to the
	// server (RFC 5424 section 6.2.1); netconsole takes those above kernelPanics.
	kernelWarning = 4
	// kernelConsole is the level below which messages go to the console, and with it
	// to netconsole: emergencies, alerts and critical ones. A panic raises it.
	kernelConsole = 3
	// kernelBurst lines go at once, then one each kernelEvery: a disk that dies says
	// the same for hours.
	kernelBurst = 40
	kernelEvery = 10 * time.Second
	// kernelLine is what is kept of a message.
	kernelLine = 400
	// netconsolePort is what the kernel sends from by its own choice.
	netconsolePort = 6665
)

// kmsg sends the kernel's warnings and worse to the server, from the first
// one since the machine was switched on.
type kmsg struct {
	to   io.Writer
	from int // the gravest that are sent; netconsole sends those before it
	now  func() time.Time

	tokens float64
	last   time.Time
	lost   int
}

// follow reads /dev/kmsg, a record at a time, until it is closed.
func (k *kmsg) follow(records io.Reader) {
	buf := make([]byte, 8192) // a record and its dictionary have 8 KiB at most
	for {
		n, err := records.Read(buf)
		switch {
		case errors.Is(err, unix.EPIPE): // overwritten before it was read
			k.lost++
			continue
		case errors.Is(err, unix.EINVAL): // larger than the buffer: skipped
			continue
		case err != nil:
			return
		}
		k.record(string(buf[:n]))
	}
}

// record is "PRIORITY,SEQUENCE,MICROSECONDS,FLAGS;TEXT" and lines of a dictionary
// (Documentation/ABI/testing/dev-kmsg).
func (k *kmsg) record(r string) {
	head, text, ok := strings.Cut(r, ";")
	f := strings.Split(head, ",")
	if !ok || len(f) < 3 {
		return
	}
	priority, err1 := strconv.Atoi(f[0])
	micros, err2 := strconv.ParseInt(f[2], 10, 64)
	text, _, _ = strings.Cut(text, "\n")
	// The nonce is nobody's business beside the server's.
	if err1 != nil || err2 != nil || text == "" || priority&7 > kernelWarning || priority&7 < k.from || strings.Contains(text, "recast.nonce=") {
		return
	}
	now := k.now()
	if k.last.IsZero() {
		k.tokens = kernelBurst
	} else {
		k.tokens = min(kernelBurst, k.tokens+now.Sub(k.last).Seconds()/kernelEvery.Seconds())
	}
	k.last = now
	if k.tokens < 1 {
		k.lost++
		return
	}
	k.tokens--
	if k.lost > 0 {
		text += fmt.Sprintf(" (%d lines before it were left out)", k.lost)
		k.lost = 0
	}
	// The facility is that of the kernel, whoever wrote it: this is its log.
	_, _ = fmt.Fprintf(k.to, "<%d>kernel: [%5d.%06d] %.*s", priority&7, micros/1e6, micros%1e6, kernelLine, text)
}

// dialSyslog waits until we speak by the address that we were given: for a second
// it is tentative (RFC 4862 section 5.4), and the lines of a link-local one are
// nobody's.
func dialSyslog(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	for end := time.Now().Add(linkLocalDeadline); ; {
		conn, err := net.Dial("udp", to.String())
		if err != nil {
			if time.Now().After(end) {
				return nil, err
			}
		} else if from := conn.LocalAddr().(*net.UDPAddr).IP; !from.IsLinkLocalUnicast() || time.Now().After(end) {
			return conn, nil
		} else {
			conn.Close()
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// logKernel sends what the kernel says to the server: warnings and worse by the
// agent, and by netconsole what nobody is left to send when the kernel panics.
func (c *console) logKernel(conn net.Conn, nic string, m *modules) {
	k := &kmsg{to: conn, now: time.Now}
	if err := netconsole(conn, nic, m); err == nil {
		k.from = kernelConsole
	} else {
		c.log("a panic of the kernel will not be seen by the server: %v", err)
	}
	f, err := os.Open("/dev/kmsg")
	if err != nil {
		c.log("the kernel's messages are not sent: %v", err)
		return
	}
	go k.follow(f) // until the machine restarts, as all of this process
}

// netconsole has the kernel send its console to the server by itself. Something
// was sent to it before, so that it is a neighbour, or its router is.
func netconsole(conn net.Conn, nic string, m *modules) error {
	from, err1 := netip.ParseAddrPort(conn.LocalAddr().String())
	to, err2 := netip.ParseAddrPort(conn.RemoteAddr().String())
	i, err3 := net.InterfaceByName(nic)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	var mac net.HardwareAddr
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		table, err := syscall.NetlinkRIB(unix.RTM_GETNEIGH, unix.AF_UNSPEC)
		if err != nil {
			return fmt.Errorf("list neighbours: %w", err)
		}
		if mac = nextHop(table, i.Index, to.Addr(), time.Now().After(end)); mac != nil {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("no neighbour leads to %s", to.Addr())
		}
	}
	return m.insertWith("netconsole", fmt.Sprintf("netconsole=%d@%s/%s,%d@%s/%s", netconsolePort, from.Addr(), nic, to.Port(), to.Addr(), mac))
}

// nextHop is the hardware address by which the server is reached: its own, or at
// last that of the only neighbour of its kind, the router, since nobody else was
// spoken to.
func nextHop(table []byte, ifindex int, server netip.Addr, atLast bool) net.HardwareAddr {
	messages, err := syscall.ParseNetlinkMessage(table)
	if err != nil {
		return nil
	}
	var others []net.HardwareAddr
	for _, msg := range messages {
		const ndmsg = 12 // family, padding, interface, state, flags, type (linux/neighbour.h)
		if msg.Header.Type != unix.RTM_NEWNEIGH || len(msg.Data) < ndmsg || int(binary.NativeEndian.Uint32(msg.Data[4:])) != ifindex {
			continue
		}
		if state := binary.NativeEndian.Uint16(msg.Data[8:]); state&(unix.NUD_INCOMPLETE|unix.NUD_FAILED|unix.NUD_NOARP) != 0 {
			continue
		}
		var addr netip.Addr
		var mac net.HardwareAddr
		for b := msg.Data[ndmsg:]; len(b) >= unix.SizeofRtAttr; {
			n := int(binary.NativeEndian.Uint16(b))
			if n < unix.SizeofRtAttr || n > len(b) {
				break
			}
			switch value := b[unix.SizeofRtAttr:n]; binary.NativeEndian.Uint16(b[2:]) {
			case unix.NDA_DST:
				addr, _ = netip.AddrFromSlice(value)
			case unix.NDA_LLADDR:
				mac = value
			}
			b = b[min(len(b), (n+3)&^3):]
		}
		switch {
		case len(mac) != 6 || addr.Is4() != server.Is4():
		case addr == server:
			return mac
		default:
			others = append(others, mac)
		}
	}
	if atLast && len(others) == 1 {
		return others[0]
	}
	return nil
}
