package testenv

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// How firmware asks for a file by TFTP: option and value in turns.
var (
	// edk2 asks for the size first, and ends that transfer.
	simTFTPSize  = []string{"tsize", "0", "blksize", "1468", "windowsize", "4"}
	simTFTPEdk2  = []string{"blksize", "1468", "windowsize", "4"}
	simTFTPUBoot = []string{"timeout", "5", "blksize", "1468"}
)

const (
	simTFTPWait  = time.Second // for an answer, until the last packet is sent again
	simTFTPTries = 6
)

// tftp fetches a file from server to the machine at from and gives its first
// bytes and its length; where look is set it ends after the size was told.
func (w *SimWire) tftp(ctx context.Context, from, server netip.Addr, name string, options []string, look bool) (first []byte, size int, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("TFTP of %s from %s: %w", name, server, err)
		}
	}()
	var conn *net.UDPConn
	if err := NetDo(w.host.Name, func() (err error) {
		conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)))
		return err
	}); err != nil {
		return nil, 0, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()

	to := netip.AddrPortFrom(server, 69)
	last := []byte("\x00\x01" + strings.Join(append([]string{name, "octet"}, options...), "\x00") + "\x00")
	say := func(p []byte) error {
		last = p
		_, err := conn.WriteToUDPAddrPort(p, to)
		return err
	}
	ack := func(block uint16) []byte { return binary.BigEndian.AppendUint16([]byte{0, 4}, block) }
	if err := say(last); err != nil {
		return nil, 0, err
	}
	blocks, length, window := 0, 512, 1
	b := make([]byte, 64<<10)
	for tries := 0; ; {
		if ctx.Err() != nil {
			return nil, 0, ctx.Err()
		}
		_ = conn.SetReadDeadline(time.Now().Add(simTFTPWait))
		n, peer, err := conn.ReadFromUDPAddrPort(b)
		if err != nil {
			var timeout net.Error
			if !errors.As(err, &timeout) || !timeout.Timeout() {
				return nil, 0, err
			}
			if tries++; tries == simTFTPTries {
				return nil, 0, errors.New("no answer")
			}
			if err := say(last); err != nil {
				return nil, 0, err
			}
			continue
		}
		peer = netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port())
		if n < 4 || peer.Addr() != server || to.Port() != 69 && peer != to {
			continue
		}
		to = peer // the transfer's own port (RFC 1350, 4)
		switch kind, block := binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]); {
		case kind == 5: // ERROR
			return nil, 0, fmt.Errorf("error %d: %s", block, simText(b[4:n]))
		case kind == 6 && blocks == 0: // OACK
			agreed := strings.Split(string(b[2:n]), "\x00")
			for i := 0; i+1 < len(agreed); i += 2 {
				value, _ := strconv.Atoi(agreed[i+1])
				switch strings.ToLower(agreed[i]) {
				case "blksize":
					length = value
				case "windowsize":
					window = max(value, 1)
				case "tsize":
					size = value
				}
			}
			if look {
				return nil, size, say([]byte("\x00\x05\x00\x00User aborted the transfer\x00"))
			}
			size = 0
			if err := say(ack(0)); err != nil {
				return nil, 0, err
			}
		case kind == 3 && block == uint16(blocks+1): // DATA
			tries = 0
			blocks++
			if first == nil {
				first = append([]byte(nil), b[4:n]...)
			}
			size += n - 4
			over := n-4 < length
			if over || blocks%window == 0 {
				if err := say(ack(block)); err != nil {
					return nil, 0, err
				}
			}
			if over {
				return first, size, nil
			}
		case kind == 3: // out of turn: what came last in turn, once per window
			if block == uint16(blocks+window) || window == 1 && block != uint16(blocks) {
				if err := say(ack(uint16(blocks))); err != nil {
					return nil, 0, err
				}
			}
		}
	}
}
