package bmc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"recast/bmc"
	"recast/testenv"
)

// heard collects what a console says.
type heard struct {
	mu   sync.Mutex
	text []byte
	err  error
	more chan struct{}
}

// openConsole opens one that is closed with the test, and listens to it.
func openConsole(t *testing.T, f *bmc.Fleet, target bmc.Target, o bmc.ConsoleOptions) (bmc.Console, *heard) {
	t.Helper()
	var c bmc.Console
	var err error
	for ctx := within(t, 30*time.Second); c == nil; { // a login may lose too many of its packets
		if c, err = f.Console(ctx, target, o); err != nil && !errors.Is(err, bmc.ErrTimeout) && !errors.Is(err, bmc.ErrUnreachable) || ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	h := &heard{more: make(chan struct{}, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<10)
		for {
			n, err := c.Read(buf)
			h.mu.Lock()
			h.text, h.err = append(h.text, buf[:n]...), err
			h.mu.Unlock()
			select {
			case h.more <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { _ = c.Close(); <-done })
	return c, h
}

// await waits until what was said satisfies.
func (h *heard) await(t *testing.T, d time.Duration, what string, ok func(text []byte, err error) bool) {
	t.Helper()
	late, tick := time.After(d), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for {
		h.mu.Lock()
		text, err := h.text, h.err
		h.mu.Unlock()
		if ok(text, err) {
			return
		}
		select {
		case <-h.more:
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not within %s; %d bytes so far, ending %q; %v", what, d, len(text), text[max(0, len(text)-200):], err)
		}
	}
}

func (h *heard) awaitText(t *testing.T, want string) {
	t.Helper()
	h.await(t, 20*time.Second, fmt.Sprintf("%.40q", want), func(text []byte, _ error) bool { return bytes.Contains(text, []byte(want)) })
}

func newConsoleFleet(t *testing.T) *bmc.Fleet {
	f := &bmc.Fleet{}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := f.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return f
}

func TestConsolePassesOnWhatIsSaidAndTyped(t *testing.T) {
	t.Parallel()
	machine := &testenv.SimMachine{}
	b := newIPMI(t, testenv.IPMIOptions{Machine: machine})
	f := newConsoleFleet(t)
	c, h := openConsole(t, f, ipmiTarget(b), bmc.ConsoleOptions{})
	if c.Way() != "IPMI" {
		t.Errorf("way %q", c.Way())
	}
	long := strings.Repeat("0123456789abcdef", 40) + "END" // more than a packet
	if n, err := c.Write([]byte(long)); err != nil || n != len(long) {
		t.Fatal(n, err)
	}
	h.awaitText(t, long)
	machine.Port.Say("login: ")
	h.awaitText(t, "login: ")
	if err := c.Break(); err != nil || machine.Port.Breaks() != 1 {
		t.Errorf("%d breaks, %v", machine.Port.Breaks(), err)
	}
	// No other call waits for an open console.
	if err := f.Do(within(t, 5*time.Second), ipmiTarget(b), func(ctx context.Context, c bmc.Client) error {
		return c.On(ctx)
	}); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	h.await(t, 5*time.Second, "the end", func(_ []byte, err error) bool { return errors.Is(err, io.EOF) })
	if _, err := c.Write([]byte("x")); err == nil {
		t.Error("a closed console takes what is typed")
	}
	// Its place is free at once.
	openConsole(t, f, ipmiTarget(b), bmc.ConsoleOptions{})
}

func TestConsoleLosesNothingWhenPacketsAreLost(t *testing.T) {
	t.Parallel()
	machine := &testenv.SimMachine{}
	b := newIPMI(t, testenv.IPMIOptions{Machine: machine, Seed: 7, Faults: testenv.BMCFaults{LoseIn: 0.15, LoseOut: 0.15}})
	c, h := openConsole(t, newConsoleFleet(t), ipmiTarget(b), bmc.ConsoleOptions{})
	var want strings.Builder
	for i := range 60 {
		word := fmt.Sprintf("<%d>", i)
		want.WriteString(word)
		if _, err := c.Write([]byte(word)); err != nil {
			t.Fatalf("type %s: %v", word, err)
		}
	}
	// The terminal echoes: each word was typed once and shown once, in order. Where a
	// BMC gives up on a packet it says so; that is five losses in a row.
	h.awaitText(t, want.String())
}

func TestConsoleInUseNamesItsHolderAndCanBePutOut(t *testing.T) {
	t.Parallel()
	machine := &testenv.SimMachine{}
	b := newIPMI(t, testenv.IPMIOptions{Machine: machine})
	_, first := openConsole(t, newConsoleFleet(t), ipmiTarget(b), bmc.ConsoleOptions{})
	f := newConsoleFleet(t)
	c, err := f.Console(within(t, 10*time.Second), ipmiTarget(b), bmc.ConsoleOptions{})
	var taken *bmc.TakenError
	if !errors.As(err, &taken) || !errors.Is(err, bmc.ErrTaken) {
		t.Fatalf("%v, %v; want TakenError", c, err)
	}
	if taken.User != `"`+user+`"` || !strings.HasPrefix(taken.From, "127.0.0.1:") || taken.BMC != b.Addr() {
		t.Errorf("taken by %+v", taken)
	}
	_, second := openConsole(t, f, ipmiTarget(b), bmc.ConsoleOptions{Evict: true})
	first.await(t, 10*time.Second, "the first is told", func(_ []byte, err error) bool { return errors.Is(err, bmc.ErrTaken) })
	machine.Port.Say("hello")
	second.awaitText(t, "hello")
}

func TestConsoleEndsWithItsBMC(t *testing.T) {
	t.Parallel()
	machine := &testenv.SimMachine{}
	b := newIPMI(t, testenv.IPMIOptions{Machine: machine})
	f := newConsoleFleet(t)
	_, h := openConsole(t, f, ipmiTarget(b), bmc.ConsoleOptions{})
	b.Restart()
	h.await(t, 30*time.Second, "the end", func(_ []byte, err error) bool {
		return errors.Is(err, bmc.ErrTimeout) || errors.Is(err, bmc.ErrTaken)
	})
	_, again := openConsole(t, f, ipmiTarget(b), bmc.ConsoleOptions{})
	machine.Port.Say("back")
	again.awaitText(t, "back")
}

func TestConsoleWithAWrongPasswordCostsOneLogin(t *testing.T) {
	t.Parallel()
	b := newIPMI(t, testenv.IPMIOptions{Machine: &testenv.SimMachine{}})
	f := newConsoleFleet(t)
	target := ipmiTarget(b)
	target.Password = "wrong"
	for range 3 {
		if c, err := f.Console(within(t, 10*time.Second), target, bmc.ConsoleOptions{}); !errors.Is(err, bmc.ErrAuth) {
			t.Fatalf("%v, %v; want ErrAuth", c, err)
		}
	}
	if err := f.Do(t.Context(), target, func(context.Context, bmc.Client) error { return nil }); !errors.Is(err, bmc.ErrAuth) {
		t.Errorf("%v, want ErrAuth", err)
	}
	if n := b.Count("login"); n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
}

// mute is a machine without a serial port.
type mute struct{ testenv.Machine }

func TestConsoleThatABMCHasNotIsUnsupported(t *testing.T) {
	t.Parallel()
	b := newIPMI(t, testenv.IPMIOptions{Machine: mute{&testenv.SimMachine{}}})
	f := newConsoleFleet(t)
	if c, err := f.Console(within(t, 10*time.Second), ipmiTarget(b), bmc.ConsoleOptions{}); !errors.Is(err, bmc.ErrUnsupported) {
		t.Errorf("%v, %v; want ErrUnsupported", c, err)
	}
	// Nor is its user refused elsewhere for that.
	if err := f.Do(within(t, 10*time.Second), ipmiTarget(b), func(ctx context.Context, c bmc.Client) error {
		_, err := c.Power(ctx)
		return err
	}); err != nil {
		t.Error(err)
	}
}

// TestConsoleOfIPMISim opens the console of a BMC that shares no code with us.
func TestConsoleOfIPMISim(t *testing.T) {
	t.Parallel()
	port, err := net.Listen("tcp", "127.0.0.1:0") // the machine's serial port
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = port.Close() })
	said := make(chan string, 1)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := port.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				go func() { <-t.Context().Done(); _ = conn.Close() }()
				go func() {
					for text := range said {
						_, _ = io.WriteString(conn, text)
					}
				}()
				_, _ = io.Copy(conn, conn) // a terminal that echoes
			})
		}
	})
	_, at := runIPMISim(t, ipmiSimChassis, fmt.Sprintf("sol \"telnet:%s\" 115200", port.Addr()))
	target := bmc.Target{URL: fmt.Sprintf("ipmi://127.0.0.1:%d", at), User: user, Password: password, CipherSuite: 3}
	c, h := openConsole(t, newConsoleFleet(t), target, bmc.ConsoleOptions{})
	long := strings.Repeat("0123456789abcdef", 20) + "END"
	if _, err := c.Write([]byte(long)); err != nil {
		t.Fatal(err)
	}
	h.awaitText(t, long)
	said <- "GRUB loading"
	h.awaitText(t, "GRUB loading")
	close(said)
}
