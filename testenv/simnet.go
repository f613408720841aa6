package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"recast/agent"
)

// simNet is how a simulated machine reaches the server in one start.
type simNet struct {
	*Simulated
	client *http.Client
	dial   agent.DialFunc
	script string // URL
	base   string // what stands before a path
}

// retry is the pause after which a machine asks again: what the script says, where
// it hangs on a wire.
func (s *Simulated) retry(said time.Duration) time.Duration {
	if s.Options.Wire == nil {
		return simRetry
	}
	return max(said, time.Second)
}

// lease asks DHCP, where its cable is plugged in.
func (s *Simulated) lease(b *simBoot, as simAsker) (simLease, error) {
	s.mu.Lock()
	unplugged := s.noLink
	s.mu.Unlock()
	if unplugged {
		return simLease{}, errNoLink
	}
	return s.Options.Wire.lease(b.ctx, as, s.Options.MAC, b.board.UUID)
}

// load plays the firmware and its loader up to the boot script's address.
func (s *Simulated) load(b *simBoot, via SimFirmware, uri string) (*simNet, error) {
	if s.Options.Wire != nil {
		return s.loadByWire(b, via, uri)
	}
	n := &simNet{Simulated: s, base: "http://" + s.Options.Server, dial: s.dial,
		client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: s.dial}, Timeout: 20 * time.Second}}
	if uri != "" {
		if err := simLoad(b.ctx, n.client, uri); err != nil {
			return nil, fmt.Errorf("http: %w", err)
		}
		s.note(b, "http: %s", uri)
	}
	n.script = n.base + simExpand("/boot/script?mac=${netX/mac}&uuid=${uuid}&serial=${serial:uristring}&arch=${buildarch}.${platform}", s.Options, b.board)
	return n, nil
}

func (s *Simulated) loadByWire(b *simBoot, via SimFirmware, uri string) (*simNet, error) {
	o, w := s.Options, s.Options.Wire
	ask := func(as simAsker) (simLease, error) { return s.lease(b, as) }
	tftp := func(l simLease, look, get []string) error {
		if l.file == "" {
			return errors.New("network boot: DHCP names no boot file")
		}
		if look != nil {
			if _, _, err := w.tftp(b.ctx, l.addr, l.server, l.file, look, true); err != nil {
				return err
			}
		}
		first, size, err := w.tftp(b.ctx, l.addr, l.server, l.file, get, false)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(string(first), "MZ") {
			return fmt.Errorf("load %s: not a program of UEFI", l.file)
		}
		s.note(b, "%s: %d bytes by TFTP", l.file, size)
		return nil
	}
	loader := simIPXE
	switch via {
	case SimBIOS:
		loader = simROM
	case SimUEFI:
		l, err := ask(simEdk2PXE)
		if err == nil {
			err = tftp(l, simTFTPSize, simTFTPEdk2)
		}
		if err != nil {
			return nil, err
		}
	case SimHTTP:
		l, err := ask(simEdk2HTTP)
		if err != nil {
			return nil, err
		}
		if uri == "" {
			uri = l.file
		}
		if uri == "" {
			return nil, errors.New("HTTP Boot: DHCP names no boot file")
		}
		if err := simLoad(b.ctx, w.client(l.addr), uri); err != nil {
			return nil, fmt.Errorf("http: %w", err)
		}
		s.note(b, "http: %s", uri)
	case SimUBoot:
		loader = simIPXEARM64
		own, err := ask(simUBootOwn)
		if err != nil {
			return nil, err
		}
		if own.file != "" { // a script of U-Boot's; without it, it goes on by EFI
			if _, _, err := w.tftp(b.ctx, own.addr, own.server, own.file, simTFTPUBoot, false); err != nil {
				s.note(b, "%v", err)
			}
		}
		l, err := ask(simUBootUEFI)
		if err == nil {
			err = tftp(l, nil, simTFTPUBoot)
		}
		if err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("unknown firmware %q", via)
	}
	if o.firmware() == SimUBoot {
		loader = simIPXEARM64
	}
	l, err := ask(loader)
	if err != nil {
		return nil, err
	}
	script := simExpand(l.file, o, b.board)
	u, err := url.Parse(script)
	if err != nil || u.Scheme != "http" || !u.IsAbs() {
		return nil, fmt.Errorf("iPXE: DHCP names %q, no script", l.file)
	}
	if addr, err := netip.ParseAddrPort(u.Host); err != nil || !addr.IsValid() {
		return nil, fmt.Errorf("iPXE: DHCP names %q, no address", l.file)
	}
	return &simNet{Simulated: s, client: w.client(l.addr), dial: w.dial(l.addr), script: script, base: "http://" + u.Host}, nil
}

// simExpand puts in what iPXE knows of the machine; what it does not know is empty.
func simExpand(text string, o SimulatedOptions, board Board) string {
	arch := "x86_64.efi"
	switch o.firmware() {
	case SimBIOS:
		arch = "i386.pcbios"
	case SimUBoot:
		arch = "arm64.efi"
	}
	buildarch, platform, _ := strings.Cut(arch, ".")
	var b strings.Builder
	for {
		before, rest, ok := strings.Cut(text, "${")
		b.WriteString(before)
		if !ok {
			return b.String()
		}
		var name string
		name, text, _ = strings.Cut(rest, "}")
		b.WriteString(map[string]string{
			"netX/mac": string(o.MAC), "uuid": board.UUID, "serial:uristring": url.QueryEscape(board.Serial), "buildarch": buildarch, "platform": platform,
		}[name])
	}
}

// simLoad is what UEFI HTTP Boot does: it asks for the size, then for the file,
// which must be a program of UEFI.
func simLoad(ctx context.Context, client *http.Client, uri string) error {
	for _, method := range []string{http.MethodHead, http.MethodGet} {
		req, err := http.NewRequestWithContext(ctx, method, uri, nil)
		if err != nil {
			return err
		}
		req.Header.Set("User-Agent", "UefiHttpBoot/1.0")
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		if err := simProgram(resp, method == http.MethodGet); err != nil {
			return fmt.Errorf("load %s: %w", uri, err)
		}
	}
	return nil
}

func simProgram(resp *http.Response, whole bool) error {
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	if !whole {
		return nil
	}
	head := make([]byte, 2)
	if _, err := io.ReadFull(resp.Body, head); err != nil || string(head) != "MZ" {
		return errors.New("not a program of UEFI")
	}
	_, err := io.Copy(io.Discard, resp.Body)
	return err
}

// fetchScript asks for it; try counts how often it was asked for.
func (n *simNet) fetchScript(ctx context.Context, try int) (simScript, error) {
	at := n.script
	if try > 0 || n.dial == nil {
		at += "&try=" + strconv.Itoa(try)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return simScript{}, err
	}
	req.Header.Set("User-Agent", "iPXE/1.21.1")
	resp, err := n.client.Do(req)
	if err != nil {
		return simScript{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return simScript{}, err
	}
	if resp.StatusCode != http.StatusOK {
		return simScript{}, fmt.Errorf("fetch boot script: %s: %s", resp.Status, text)
	}
	return simParseScript(string(text))
}

// simAnswers stands for DHCP where there is no wire.
func simAnswers(ctx context.Context, server string) bool {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", server)
	if err == nil {
		_ = conn.Close()
	}
	return err == nil
}
