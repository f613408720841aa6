package testenv

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	"recast/agent"
	"recast/inventory"
	"recast/target"
)

// Stages of a start that tests look for.
const (
	simDiskStarted  = "disk"
	simReported     = "reported"
	simAgainStarted = "starts over"
	simNothing      = "nothing to start"
)

// simRetry is the pause of a simulated machine that a server does not answer.
const simRetry = 50 * time.Millisecond

func simPause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// run is one start, from the firmware to whatever ends it. Its own order is the
// disk, then the network, or what its variables say.
func (s *Simulated) run(b *simBoot) {
	order := []BootDevice{BootDisk, BootPXE}
	switch {
	case s.vars != nil:
		order = s.vars.start(s.Options.DiskEntry)
	case s.Options.NetworkFirst:
		order = []BootDevice{BootPXE, BootDisk}
	}
	if b.once.Device != BootNone {
		order = append([]BootDevice{b.once.Device}, order...)
	}
	asked := false
	for _, device := range order {
		if simPause(b.ctx, s.Options.Pace) != nil {
			return
		}
		if s.vars != nil {
			s.vars.by(device)
		}
		switch device {
		case BootDisk:
			if d := s.bootableDisk(); d != nil {
				s.system(b, d)
				return
			}
		case BootPXE:
			if asked {
				continue // nobody asks twice in a start
			}
			asked = true
			if s.Options.FallsThrough && s.Options.Wire == nil && !simAnswers(b.ctx, s.Options.Server) {
				s.note(b, "no answer")
				continue
			}
			if s.netboot(b, s.Options.firmware(), "") {
				return
			}
		case simAgain:
			if s.again(b) {
				return
			}
		case BootHTTP:
			asked = true
			if s.netboot(b, SimHTTP, b.once.URI) {
				return
			}
		case BootCD:
			if s.cdboot(b) {
				<-b.ctx.Done()
				return
			}
		}
	}
	// At its order's end a UEFI looks for the removable-media path on its disks.
	if d := s.bootableDisk(); d != nil && s.vars != nil {
		s.note(b, "platform recovery")
		s.system(b, d)
		return
	}
	s.note(b, simNothing)
	<-b.ctx.Done()
}

// again runs the program that starts the machine over; false: there is none.
func (s *Simulated) again(b *simBoot) bool {
	for _, d := range s.Disks {
		if program, err := d.ConfigFile(target.AgainFile); err == nil && bytes.Equal(program, target.Again()) {
			s.note(b, simAgainStarted)
			if simPause(b.ctx, max(s.Options.Pace, simRetry)) == nil {
				s.reboot(b)
			}
			return true
		}
	}
	return false
}

// cdboot reads the boot record of what is in the drive (El Torito); false: there
// is nothing to start.
func (s *Simulated) cdboot(b *simBoot) bool {
	medium := s.Medium()
	if medium == nil {
		s.note(b, "cd: the drive is empty")
		return false
	}
	record := make([]byte, 64)
	if _, err := medium.ReadAt(record, 17*2048); err != nil {
		s.note(b, "cd: %v", err)
		return false
	}
	if string(record[1:6]) != "CD001" || !strings.HasPrefix(string(record[7:]), "EL TORITO SPECIFICATION") {
		s.note(b, "cd: %s does not boot", medium.Name())
		return false
	}
	s.note(b, "cd: %s", medium.Name())
	return true
}

// bootableDisk is the first that firmware would start.
func (s *Simulated) bootableDisk() *SimDisk {
	for _, d := range s.Disks {
		if d.Bootable() {
			return d
		}
	}
	return nil
}

// netboot loads what the firmware is told, fetches the script and does what it
// says; false: it said to go on with the next boot entry, or there is nothing.
func (s *Simulated) netboot(b *simBoot, via SimFirmware, uri string) (done bool) {
	net, err := s.load(b, via, uri)
	if err != nil {
		s.note(b, "%v", err)
		return false
	}
	for try := 0; b.ctx.Err() == nil; try++ {
		script, err := net.fetchScript(b.ctx, try)
		if err != nil && b.ctx.Err() == nil {
			s.note(b, "no script: %v", err)
		}
		if err != nil || script.again > 0 {
			_ = simPause(b.ctx, net.retry(script.again))
			continue
		}
		b.reason = script.reason
		if script.kernel == "" {
			s.note(b, "local: %s", script.reason)
			return false
		}
		s.note(b, "ramdisk: %s", script.reason)
		if s.vars != nil {
			s.vars.stub(strings.HasSuffix(script.kernel, ".efi"))
		}
		for _, path := range append([]string{script.kernel}, script.initrds...) {
			if err = simDiscard(b.ctx, net.client, net.base+path); err != nil {
				break
			}
		}
		if err != nil {
			_ = simPause(b.ctx, net.retry(0))
			continue // ":failed", then it asks for the script again
		}
		s.ramdisk(b, net, script)
		return true
	}
	return true
}

// simScript is what an iPXE script comes to.
type simScript struct {
	kernel  string // path; "" go on with the disk
	args    []string
	initrds []string
	reason  string
	again   time.Duration // after which it asks again, having done nothing else
}

// simParseScript runs the few commands that our scripts are made of, up to the
// one that leaves them.
func simParseScript(text string) (simScript, error) {
	var s simScript
	lines := strings.Split(text, "\n")
	if lines[0] != "#!ipxe" {
		return s, fmt.Errorf("boot script begins with %q, not #!ipxe", lines[0])
	}
	for _, line := range lines[1:] {
		command, _, _ := strings.Cut(line, " || ")
		f := strings.Fields(command)
		if len(f) == 0 {
			continue
		}
		switch f[0] {
		case "echo":
			if _, why, ok := strings.Cut(line, ": starting the "); ok {
				_, s.reason, _ = strings.Cut(why, ": ")
			}
		case "kernel":
			if len(f) < 2 {
				return s, fmt.Errorf("boot script: %q", line)
			}
			s.kernel, s.args = f[1], f[2:]
		case "initrd":
			s.initrds = append(s.initrds, f[len(f)-1])
		case "boot":
			return s, nil
		case "exit", "sanboot":
			s.kernel = ""
			return s, nil
		case "sleep":
			if seconds, err := strconv.Atoi(f[len(f)-1]); err == nil {
				s.again = time.Duration(seconds) * time.Second
			}
		case "chain":
			s.again = max(s.again, simRetry)
			return s, nil
		}
	}
	return s, errors.New("boot script ends without starting anything")
}

func simDiscard(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("fetch %s: %s", url, resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// ramdisk runs the real agent against this machine.
func (s *Simulated) ramdisk(b *simBoot, net *simNet, script simScript) {
	s.mu.Lock()
	line := strings.TrimSpace(path.Base(script.kernel) + " " + strings.Join(script.args, " ") + " " + s.chip.arguments)
	s.mu.Unlock()
	args, err := agent.ParseArgs(line)
	if err != nil {
		s.note(b, "the ramdisk stopped: %v", err)
		<-b.ctx.Done()
		return
	}
	if simPause(b.ctx, s.Options.Pace) != nil {
		return
	}
	hw := simHardware{s: s, b: b}
	if hw.chip, err = s.startTPM(line); err != nil {
		s.note(b, "%v", err)
	}
	if hw.chip != nil {
		defer hw.chip.Stop()
	}
	a := agent.Agent{Args: args, CommandLine: line, Machine: hw, BootID: rand.Text(), Workers: 2, Dial: net.dial,
		Log: func(format string, args ...any) { s.Options.Log(s.Options.Name+": agent: "+format, args...) }}
	if s.Options.Wire == nil {
		a.ReportEvery, a.Pause = 25*time.Millisecond, func(int) time.Duration { return simRetry }
	}
	out, err := a.Run(b.ctx)
	switch {
	case b.ctx.Err() != nil:
		return
	case err != nil:
		// The real one shows the reason for a minute.
		s.note(b, "the ramdisk stopped: %v", err)
		_ = simPause(b.ctx, 4*simRetry)
		s.reboot(b)
	case out.Kind == inventory.OrderKexec:
		s.note(b, "kexec: %s", out.Reason)
		if d := s.bootableDisk(); d != nil {
			s.system(b, d)
		}
	case out.Kind == inventory.OrderPowerOff:
		s.note(b, "powers off: %s", out.Reason)
		s.off(b)
	default:
		s.note(b, "reboots: %s", out.Reason)
		s.reboot(b)
	}
}

// system plays the installed system: it says once what it runs, where its disk
// tells it to whom.
func (s *Simulated) system(b *simBoot, d *SimDisk) {
	s.note(b, simDiskStarted)
	raw, err := d.ConfigFile("recast-report.json")
	if err != nil {
		s.note(b, "the config volume cannot be read: %v", err)
	}
	if raw == nil {
		<-b.ctx.Done() // somebody else's system
		return
	}
	if simPause(b.ctx, s.Options.Pace) != nil {
		return
	}
	if err := s.report(b, raw); err != nil && b.ctx.Err() == nil {
		s.note(b, "refused: %v", err)
	}
	<-b.ctx.Done()
}

// systemLease is the address of the installed system, which asks until it has one.
func (s *Simulated) systemLease(b *simBoot) (simLease, error) {
	for {
		lease, err := s.lease(b, simSystem)
		if err == nil {
			return lease, nil
		}
		s.note(b, "%v", err)
		if err := simPause(b.ctx, 5*time.Second); err != nil {
			return simLease{}, err
		}
	}
}

func (s *Simulated) report(b *simBoot, raw []byte) error {
	var c struct {
		URL, CA, Token, Machine string
		Generation, Rendered    inventory.Digest
		Write                   string
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return err
	}
	block, _ := pem.Decode([]byte(c.CA))
	if block == nil {
		return errors.New("the reporter's CA is no certificate")
	}
	client, err := agent.NewClient(c.URL, inventory.DigestOf(block.Bytes))
	if err != nil {
		return err
	}
	defer client.Close()
	if s.Options.Wire != nil {
		lease, err := s.systemLease(b)
		if err != nil {
			return err
		}
		client.DialBy(s.Options.Wire.dial(lease.addr))
	}
	r := inventory.BootReport{Machine: c.Machine, Generation: c.Generation, Rendered: c.Rendered, Write: c.Write, BootID: rand.Text(), Hostname: c.Machine}
	for {
		err := client.Booted(b.ctx, c.Token, r)
		if err == nil {
			s.note(b, simReported)
			return nil
		}
		var answer *agent.StatusError
		if errors.As(err, &answer) && answer.Final() {
			return err
		}
		if err := simPause(b.ctx, s.retry(0)); err != nil {
			return err
		}
	}
}
