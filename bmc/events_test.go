package bmc_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"recast/bmc"
	"recast/testenv"
)

// listening is a stream of a virtual BMC in front of a machine.
func listening(t *testing.T, b *testenv.RedfishBMC) (bmc.Client, bmc.EventStream) {
	t.Helper()
	c, err := bmc.Dial(within(t, 20*time.Second), redfishTarget(b))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	s, err := c.(bmc.EventSource).Listen(within(t, 20*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return c, s
}

func awaitSubscribers(t *testing.T, b *testenv.RedfishBMC, want int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); b.Subscribers() != want; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d subscribers, want %d", b.Subscribers(), want)
		}
	}
}

func TestEventsTellOfWhatHappenedBehindOurBack(t *testing.T) {
	machine := &testenv.SimMachine{}
	b := newRedfish(t, testenv.RedfishOptions{Machine: machine})
	c, s := listening(t, b)
	awaitSubscribers(t, b, 1)
	for range 3 {
		if err := machine.PowerOn(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Next(within(t, 20*time.Second)); err != nil {
			t.Fatal(err)
		}
		if state, err := c.Power(within(t, 20*time.Second)); err != nil || state != bmc.PowerOn {
			t.Errorf("while the stream is open: %s, %v", state, err)
		}
		if err := machine.PowerOff(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Next(within(t, 20*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if n := b.Count("login"); n != 1 {
		t.Errorf("%d logins, want one session for both connections", n)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	awaitSubscribers(t, b, 0)
}

func TestAStreamOfEventsEndsWithItsContextAndItsBMC(t *testing.T) {
	b := newRedfish(t, testenv.RedfishOptions{Machine: &testenv.SimMachine{}})
	_, s := listening(t, b)
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := s.Next(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want the end of the context", err)
	}
	_, s = listening(t, b)
	over := make(chan error, 1)
	go func() { over <- s.Next(within(t, 20*time.Second)) }()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-over; err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want the end of the stream", err)
	}
}

func TestAStreamOfEventsLogsInOnceMoreWhereTheSessionIsForgotten(t *testing.T) {
	machine := &testenv.SimMachine{}
	b := newRedfish(t, testenv.RedfishOptions{Machine: machine})
	c, err := bmc.Dial(within(t, 20*time.Second), redfishTarget(b))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	b.DropSessions()
	s, err := c.(bmc.EventSource).Listen(within(t, 20*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if n := b.Count("login"); n != 2 {
		t.Errorf("%d logins, want 2", n)
	}
	if err := machine.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Next(within(t, 20*time.Second)); err != nil {
		t.Error(err)
	}
}

func TestWhoHasNoEventsSaysSo(t *testing.T) {
	const root = `{"Systems":{"@odata.id":"/redfish/v1/Systems"},"EventService":{"@odata.id":"/redfish/v1/EventService"},"Links":{"Sessions":{"@odata.id":"/redfish/v1/SessionService/Sessions"}}}`
	service := func(service string) bmc.Client {
		return newTree(t, map[string]string{"": root, "/EventService": service}).dial()
	}
	for name, c := range map[string]bmc.Client{
		"ipmi":                      dial(t, ipmiTarget(newIPMI(t, testenv.IPMIOptions{Machine: &testenv.SimMachine{}}))),
		"no service":                newTree(t, nil).dial(),
		"push alone":                service(`{"ServiceEnabled": true}`),
		"disabled":                  service(`{"ServiceEnabled": false, "ServerSentEventUri": "/redfish/v1/EventService/SSE"}`),
		"a resource in its place":   service(`{"ServerSentEventUri": "/redfish/v1/EventService"}`),
		"nothing where it shall be": service(`{"ServerSentEventUri": "/redfish/v1/EventService/SSE"}`),
		"on another host":           service(`{"ServerSentEventUri": "https://192.0.2.1/SSE"}`),
	} {
		if s, err := c.(bmc.EventSource).Listen(within(t, 20*time.Second)); !errors.Is(err, bmc.ErrUnsupported) {
			t.Errorf("%s: %v, %v, want ErrUnsupported", name, s, err)
		}
	}
}
