package bmc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	// sshAlive is how often a line is proved, and sshAnswer how long that may take: a
	// BMC that restarts does not close its connections.
	sshAlive  = 15 * time.Second
	sshAnswer = 10 * time.Second
	// sshBreak is how long a break lasts (RFC 4335).
	sshBreak = 500
)

// HostKeyError is an SSH host key that nobody vouched for. It matches ErrPin.
type HostKeyError struct {
	Host string   // host:port
	Seen []string // SHA256:…, as ssh-keygen -l shows them
	Want string   // "": none is pinned
}

func (e *HostKeyError) Error() string {
	seen := strings.Join(e.Seen, ", ")
	if e.Want == "" {
		return fmt.Sprintf("no SSH host key is pinned for %s, which shows %s; compare it with what the BMC's own console shows, then set bmc.hostKey to it", e.Host, seen)
	}
	return fmt.Sprintf("the SSH host key of %s is not the pinned one: it shows %s, pinned is %s; if it was replaced on purpose, set bmc.hostKey to the one shown", e.Host, seen, e.Want)
}

func (e *HostKeyError) Is(target error) bool { return target == ErrPin }

// sshKinds of host keys are asked for one by one, until the pinned one is shown: a
// BMC has several, and which it shows is the client's choice.
var sshKinds = [][]string{
	{ssh.KeyAlgoED25519},
	{ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521},
	{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256},
}

// sshConsole is a shell, or what a BMC gives out for one.
type sshConsole struct {
	client  *ssh.Client
	session *ssh.Session
	in      io.Writer
	out     io.Reader

	once   sync.Once
	closed chan struct{}
	work   sync.WaitGroup
}

// dialSSH logs in once and opens the console. Its caller holds the turn.
func dialSSH(ctx context.Context, a address, t Target, command string) (_ Console, err error) {
	leave, err := t.board.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { leave(err) }()
	refused := &HostKeyError{Host: a.hostPort(), Want: t.HostKey}
	for _, kinds := range sshKinds {
		var client *ssh.Client
		if client, err = sshLogin(ctx, a, t, kinds, refused); err == nil {
			return openSSH(client, t, command)
		}
		var none *ssh.AlgorithmNegotiationError
		if !errors.As(err, &none) && !errors.Is(err, ErrPin) {
			return nil, err
		}
	}
	if len(refused.Seen) > 0 {
		err = refused
	}
	return nil, err
}

// sshLogin gives the password to the pinned key alone, and once: BMCs count.
func sshLogin(ctx context.Context, a address, t Target, kinds []string, refused *HostKeyError) (*ssh.Client, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", a.hostPort())
	if err != nil {
		if ctx.Err() != nil {
			return nil, ended(ctx, "connect by SSH")
		}
		return nil, explain("connect by SSH", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	given := false
	once := func() (string, error) {
		if given {
			return "", ErrAuth
		}
		given = true
		return t.Password.Reveal(), nil
	}
	c, channels, requests, err := ssh.NewClientConn(conn, a.hostPort(), &ssh.ClientConfig{
		User: t.User, HostKeyAlgorithms: kinds, ClientVersion: "SSH-2.0-recast",
		Auth: []ssh.AuthMethod{
			ssh.PasswordCallback(once),
			ssh.KeyboardInteractive(func(_, _ string, questions []string, echos []bool) ([]string, error) {
				if len(questions) == 0 {
					return nil, nil // words of greeting
				}
				password, err := once()
				if len(questions) > 1 || echos[0] {
					return nil, ErrUnsupported
				}
				return []string{password}, err
			}),
		},
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			seen := ssh.FingerprintSHA256(key)
			if t.HostKey == "" || seen != t.HostKey {
				refused.Seen = append(refused.Seen, seen)
				return refused
			}
			return nil
		},
	})
	if err == nil {
		return ssh.NewClient(c, channels, requests), nil
	}
	_ = conn.Close()
	var none *ssh.AlgorithmNegotiationError
	switch {
	case ctx.Err() != nil:
		return nil, ended(ctx, "log in by SSH")
	case errors.Is(err, ErrPin), errors.As(err, &none):
		return nil, err
	case given && strings.Contains(err.Error(), "unable to authenticate"), errors.Is(err, ErrAuth):
		return nil, fmt.Errorf("log in by SSH: %w", ErrAuth)
	case strings.Contains(err.Error(), "unable to authenticate"):
		return nil, fmt.Errorf("log in by SSH: %w: no login by password", ErrUnsupported)
	}
	return nil, explain("log in by SSH", err)
}

// openSSH asks for a shell on a terminal; behind some ports that is the console.
func openSSH(client *ssh.Client, t Target, command string) (_ Console, err error) {
	c := &sshConsole{client: client, closed: make(chan struct{})}
	defer func() {
		if err != nil {
			_ = client.Close()
		}
	}()
	if c.session, err = client.NewSession(); err != nil {
		var busy *ssh.OpenChannelError
		if errors.As(err, &busy) {
			return nil, fmt.Errorf("open the console by SSH: %w: %s", ErrBusy, oneLine(err))
		}
		return nil, explain("open the console by SSH", err)
	}
	if c.in, err = c.session.StdinPipe(); err == nil {
		c.out, err = c.session.StdoutPipe()
	}
	if err == nil {
		err = c.session.RequestPty("vt100", 24, 80, ssh.TerminalModes{})
	}
	if err == nil {
		err = c.session.Shell()
	}
	if err == nil && command != "" {
		_, err = io.WriteString(c.in, command+"\r")
	}
	if err != nil {
		return nil, explain("open the console by SSH", err)
	}
	c.work.Go(func() { c.prove(t.wait(sshAlive), t.wait(sshAnswer)) })
	return c, nil
}

// prove asks for a word from the BMC now and then, and ends the line where none comes.
func (c *sshConsole) prove(every, most time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-c.closed:
			return
		case <-tick.C:
		}
		late := time.AfterFunc(most, func() { _ = c.client.Close() })
		// An answer of any kind does: that it is not known is one.
		_, _, err := c.client.SendRequest("keepalive@openssh.com", true, nil)
		late.Stop()
		if err != nil {
			return
		}
	}
}

// Read implements Console.
func (c *sshConsole) Read(p []byte) (int, error) {
	n, err := c.out.Read(p)
	if err == nil || n > 0 {
		return n, nil
	}
	select {
	case <-c.closed:
		return 0, io.EOF
	default:
		return 0, fmt.Errorf("the console: %w: the BMC ended it", ErrUnreachable)
	}
}

// Write implements Console.
func (c *sshConsole) Write(p []byte) (int, error) {
	n, err := c.in.Write(p)
	if err != nil {
		return n, fmt.Errorf("type to the console: %w: %s", ErrUnreachable, oneLine(err))
	}
	return n, nil
}

// Break implements Console.
func (c *sshConsole) Break() error {
	ok, err := c.session.SendRequest("break", true, ssh.Marshal(struct{ Length uint32 }{sshBreak}))
	switch {
	case err != nil:
		return fmt.Errorf("send a break: %w: %s", ErrUnreachable, oneLine(err))
	case !ok:
		return fmt.Errorf("send a break: %w over SSH", ErrUnsupported)
	}
	return nil
}

// Way implements Console.
func (c *sshConsole) Way() string { return "SSH" }

// Close implements Console.
func (c *sshConsole) Close() error {
	c.once.Do(func() { close(c.closed) })
	err := c.client.Close()
	c.work.Wait()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return err
}
