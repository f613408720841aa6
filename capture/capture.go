// Package capture writes a machine's packets to a pcap file: DHCP, TFTP, and the
// HTTP of boot scripts, without what is secret and without the bytes of files.
package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"

	"recast/inventory"
)

// Options say whose packets are captured, and where.
type Options struct {
	Interfaces []string
	MACs       []inventory.MAC
	Addrs      []netip.Addr // its own, so that it is seen behind a relay too
	// BootPort and AgentPort are the server's TCP ports.
	BootPort, AgentPort int
	// MaxBytes ends the capture; 0 means 64 MiB.
	MaxBytes int64
}

const (
	defaultMax = 64 << 20
	// etherTypeAll is ETH_P_ALL: what goes out is seen with it, too.
	etherTypeAll = 3
)

// errFull ends a capture that has taken its share.
var errFull = errors.New("the capture has reached its largest size")

// Run writes a pcap file until the context ends, which is no error. The writer is
// called for each packet, and once at the start, so that a reader sees at once
// that it has begun. It needs CAP_NET_RAW.
func Run(ctx context.Context, o Options, to io.Writer) error {
	if len(o.Interfaces) == 0 || len(o.MACs) == 0 {
		return errors.New("capture: neither interface nor hardware address is named")
	}
	raw, err := bpf.Assemble(filter(o.MACs, o.Addrs))
	if err != nil {
		return fmt.Errorf("assemble filter: %w", err)
	}
	var conns []*packet.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for _, name := range o.Interfaces {
		i, err := net.InterfaceByName(name)
		if err != nil {
			return fmt.Errorf("capture on %q: %w", name, err)
		}
		c, err := packet.Listen(i, packet.Raw, etherTypeAll, &packet.Config{Filter: raw})
		if err != nil {
			return fmt.Errorf("capture on %q: %w", name, err)
		}
		conns = append(conns, c)
		if err := askForTags(c); err != nil {
			return fmt.Errorf("capture on %q: %w", name, err)
		}
	}
	w := &writer{to: to, most: o.MaxBytes}
	if w.most == 0 {
		w.most = defaultMax
	}
	if err := w.begin(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() {
		for _, c := range conns {
			_ = c.SetReadDeadline(time.Unix(1, 0))
		}
	})
	defer stop()
	var readers sync.WaitGroup
	for _, c := range conns {
		readers.Go(func() {
			if err := read(c, newChooser(o), w); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	readers.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, errFull) {
		return err
	}
	return nil
}

func read(c *packet.Conn, choose *chooser, w *writer) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("read packets: %w", err)
	}
	buf := make([]byte, snap)
	for {
		n, vlan, err := receive(rc, buf)
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			return fmt.Errorf("read packets: %w", err)
		}
		frame, tag := untag(buf[:n])
		if kept := choose.choose(frame); kept != nil {
			if err := w.packet(time.Now(), retag(kept, vlan, tag), n+len(vlan)); err != nil {
				return err
			}
		}
	}
}

// writer of the classic pcap format
// (draft-ietf-opsawg-pcap), which every tool reads.
type writer struct {
	mu   sync.Mutex
	to   io.Writer
	n    int64
	most int64
	buf  []byte
}

func (w *writer) begin() error {
	b := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4) // microseconds
	b = binary.LittleEndian.AppendUint16(b, 2)
	b = binary.LittleEndian.AppendUint16(b, 4)
	b = append(b, make([]byte, 8)...)
	b = binary.LittleEndian.AppendUint32(b, 65535)
	b = binary.LittleEndian.AppendUint32(b, 1) // LINKTYPE_ETHERNET
	_, err := w.to.Write(b)
	return err
}

// packet writes one; whole is its length on the wire as far as it is known.
func (w *writer) packet(at time.Time, kept []byte, whole int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.n += int64(16 + len(kept)); w.n > w.most {
		return errFull
	}
	b := binary.LittleEndian.AppendUint32(w.buf[:0], uint32(at.Unix()))
	b = binary.LittleEndian.AppendUint32(b, uint32(at.Nanosecond()/1000))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(kept)))
	b = binary.LittleEndian.AppendUint32(b, uint32(max(whole, len(kept))))
	w.buf = append(b, kept...)
	_, err := w.to.Write(w.buf)
	return err
}

// Interfaces that a machine may be heard on: those named, or all that are up where
// it is reached through relays.
func Interfaces(named []string) ([]string, error) {
	if len(named) > 0 {
		slices.Sort(named)
		return slices.Compact(named), nil
	}
	list, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var out []string
	for _, i := range list {
		if i.Flags&net.FlagUp != 0 && i.Flags&net.FlagLoopback == 0 && len(i.HardwareAddr) == 6 {
			out = append(out, i.Name)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("no interface is up")
	}
	return out, nil
}
