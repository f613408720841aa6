package testenv

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	redfishEventService  = redfishRoot + "/EventService"
	redfishSubscriptions = redfishEventService + "/Subscriptions"

	redfishSubscribers  = 16 // at once, streams among them
	redfishEventQueue   = 64 // events that wait for one subscriber; then the oldest goes
	redfishEventRetries = 3
	redfishEventPause   = time.Second
	redfishEventTakes   = 10 * time.Second
)

// redfishSubscription is who wants events: a web server that they are pushed to,
// or a stream that is open (SSE). Guarded by RedfishBMC.stateMu.
type redfishSubscription struct {
	id, context, destination string
	policy                   string // DeliveryRetryPolicy
	headers                  map[string]string
	prefixes, origins, types []string
	suspended                bool
	queue                    chan []byte
	cancel                   context.CancelFunc
}

func (s *redfishSubscription) path() string { return redfishSubscriptions + "/" + s.id }

// wants tells whether an event passes the filters of the subscription.
func (s *redfishSubscription) wants(registry, origin, kind string) bool {
	return (len(s.prefixes) == 0 || slices.Contains(s.prefixes, registry)) &&
		(len(s.origins) == 0 || slices.Contains(s.origins, origin)) &&
		(len(s.types) == 0 || slices.Contains(s.types, kind))
}

// redfishEventTypes are the older kinds of events, by which older clients subscribe.
var redfishEventTypes = []string{"StatusChange", "ResourceUpdated", "ResourceAdded", "ResourceRemoved", "Alert"}

func redfishEventType(message string) string {
	switch message {
	case "ResourceEvent.ResourcePoweredOn", "ResourceEvent.ResourcePoweredOff":
		return "StatusChange"
	case "ResourceEvent.TestMessage":
		return "Alert"
	case "ResourceEvent.ResourceCreated":
		return "ResourceAdded"
	}
	return "ResourceUpdated"
}

// event hands a message to every subscriber; it waits for none.
func (b *RedfishBMC) event(message, origin string, args ...string) {
	m := redfishMessage(message, args...)
	b.stateMu.Lock()
	defer b.stateMu.Unlock()
	b.nextEvent++
	id := strconv.Itoa(b.nextEvent)
	kind, registry := redfishEventType(message), strings.SplitN(message, ".", 2)[0]
	record := map[string]any{
		"MemberId": "0", "EventId": id, "EventType": kind, "EventTimestamp": redfishTime(time.Now()),
		"MessageId": m["MessageId"], "Message": m["Message"], "MessageSeverity": m["MessageSeverity"], "Severity": m["Severity"],
		"OriginOfCondition": redfishID(origin),
	}
	if len(args) > 0 {
		record["MessageArgs"] = args
	}
	for _, s := range b.subscriptions {
		if s.suspended || !s.wants(registry, origin, kind) {
			continue
		}
		body, err := json.Marshal(map[string]any{
			"@odata.type": "#Event.v1_13_0.Event", "Id": id, "Name": "Event Array", "Context": s.context, "Events": []any{record},
		})
		if err != nil {
			panic(err) // only maps and words are in it
		}
		for {
			select {
			case s.queue <- body:
			default:
				select {
				case <-s.queue:
				default:
				}
				continue
			}
			break
		}
	}
}

// subscribe adds a subscriber, or returns false where there are enough; the
// context ends with it and with the BMC.
func (b *RedfishBMC) subscribe(s *redfishSubscription) (context.Context, bool) {
	b.stateMu.Lock()
	defer b.stateMu.Unlock()
	if len(b.subscriptions) >= redfishSubscribers {
		return nil, false
	}
	b.nextSubscription++
	s.id, s.queue = strconv.Itoa(b.nextSubscription), make(chan []byte, redfishEventQueue)
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(b.ctx)
	b.subscriptions = append(b.subscriptions, s)
	return ctx, true
}

// Subscribers is how many there are, streams among them.
func (b *RedfishBMC) Subscribers() int {
	b.stateMu.Lock()
	defer b.stateMu.Unlock()
	return len(b.subscriptions)
}

func (b *RedfishBMC) unsubscribe(s *redfishSubscription) {
	s.cancel()
	b.stateMu.Lock()
	defer b.stateMu.Unlock()
	b.subscriptions = slices.DeleteFunc(b.subscriptions, func(o *redfishSubscription) bool { return o == s })
}

// push delivers the events of one subscription until it ends.
func (b *RedfishBMC) push(ctx context.Context, s *redfishSubscription) {
	for {
		var body []byte
		select {
		case <-ctx.Done():
			return
		case body = <-s.queue:
		}
		for try := 0; ; try++ {
			err := b.deliver(ctx, s, body)
			if err == nil || ctx.Err() != nil {
				break
			}
			if try >= redfishEventRetries && s.policy != "RetryForever" {
				if s.policy == "TerminateAfterRetries" {
					b.unsubscribe(s)
					return
				}
				b.stateMu.Lock()
				s.suspended = true
				b.stateMu.Unlock()
				break
			}
			if !b.wait(redfishEventPause) {
				return
			}
		}
	}
}

func (b *RedfishBMC) deliver(ctx context.Context, s *redfishSubscription, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, redfishEventTakes)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.destination, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("push event: %w", err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("OData-Version", "4.0")
	for k, v := range s.headers {
		r.Header.Set(k, v)
	}
	response, err := b.outside.Do(r)
	if err != nil {
		return fmt.Errorf("push event: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode >= 300 {
		return fmt.Errorf("push event to %s: %s", s.destination, response.Status)
	}
	return nil
}

func (b *RedfishBMC) eventService([]string) *redfishResource {
	return &redfishResource{get: func() map[string]any {
		return redfishNew(redfishEventService, "#EventService.v1_12_0.EventService", "EventService", "Event Service", map[string]any{
			"ServiceEnabled": true, "Status": redfishHealthy(), "DeliveryRetryAttempts": redfishEventRetries,
			"DeliveryRetryIntervalSeconds": int(redfishEventPause / time.Second), "EventFormatTypes": []string{"Event"},
			"EventTypesForSubscription": redfishEventTypes, "RegistryPrefixes": []string{"Base", "ResourceEvent"},
			"ServerSentEventUri": redfishEventService + "/SSE", "Subscriptions": redfishID(redfishSubscriptions),
			"SSEFilterPropertiesSupported": map[string]any{"EventFormatType": false, "MessageId": false, "RegistryPrefix": false, "ResourceType": false},
			"Actions":                      map[string]any{"#EventService.SubmitTestEvent": map[string]any{"target": redfishEventService + "/Actions/EventService.SubmitTestEvent"}},
		})
	}}
}

func (b *RedfishBMC) testEvent([]string) *redfishResource {
	return &redfishResource{action: true, admin: true, post: func(c *redfishCall) {
		// What the client wants in it is its own affair: it tests the way there.
		var body map[string]any
		if c.r.ContentLength != 0 && !c.read(&body) {
			return
		}
		c.log("")
		b.event("ResourceEvent.TestMessage", redfishEventService)
		c.w.WriteHeader(http.StatusNoContent)
	}}
}

func (b *RedfishBMC) subscriptionCollection([]string) *redfishResource {
	return &redfishResource{
		admin: true,
		get: func() map[string]any {
			b.stateMu.Lock()
			defer b.stateMu.Unlock()
			var members []string
			for _, s := range b.subscriptions {
				members = append(members, s.path())
			}
			return redfishCollection(redfishSubscriptions, "EventDestination", members)
		},
		post: b.createSubscription,
	}
}

func (b *RedfishBMC) createSubscription(c *redfishCall) {
	var body struct {
		Destination, Protocol, Context              *string
		SubscriptionType, EventFormatType           *string
		DeliveryRetryPolicy                         *string
		HttpHeaders                                 []map[string]string
		RegistryPrefixes, MessageIds, ResourceTypes []string
		EventTypes                                  []string
		OriginResources                             []struct {
			ID string `json:"@odata.id"`
		}
		SubordinateResources, VerifyCertificate *bool
		Name                                    *string
	}
	if !c.read(&body) {
		return
	}
	for name, v := range map[string]*string{"Destination": body.Destination, "Protocol": body.Protocol} {
		if v == nil {
			c.refuse(http.StatusBadRequest, "PropertyMissing", name)
			return
		}
	}
	s := &redfishSubscription{destination: *body.Destination, policy: "SuspendRetries", headers: map[string]string{},
		prefixes: body.RegistryPrefixes, types: body.EventTypes}
	u, err := url.Parse(s.destination)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		c.refuse(http.StatusBadRequest, "PropertyValueFormatError", s.destination, "Destination")
		return
	}
	word := func(v *string, name string, allowed ...string) bool {
		if v == nil || slices.Contains(allowed, *v) {
			return true
		}
		c.refuse(http.StatusBadRequest, "PropertyValueNotInList", *v, name)
		return false
	}
	if !word(body.Protocol, "Protocol", "Redfish") || !word(body.SubscriptionType, "SubscriptionType", "RedfishEvent") ||
		!word(body.EventFormatType, "EventFormatType", "Event") ||
		!word(body.DeliveryRetryPolicy, "DeliveryRetryPolicy", "TerminateAfterRetries", "SuspendRetries", "RetryForever") {
		return
	}
	if v := body.VerifyCertificate; v != nil && *v {
		c.refuse(http.StatusBadRequest, "PropertyValueNotInList", "true", "VerifyCertificate") // it trusts nobody yet
		return
	}
	if len(body.MessageIds)+len(body.ResourceTypes) > 0 {
		c.refuse(http.StatusBadRequest, "PropertyValueConflict", "MessageIds", "RegistryPrefixes")
		return
	}
	if body.DeliveryRetryPolicy != nil {
		s.policy = *body.DeliveryRetryPolicy
	}
	if body.Context != nil {
		s.context = *body.Context
	}
	for _, o := range body.OriginResources {
		s.origins = append(s.origins, o.ID)
	}
	for _, header := range body.HttpHeaders {
		for k, v := range header {
			s.headers[k] = v
		}
	}
	ctx, ok := b.subscribe(s)
	if !ok {
		c.refuse(http.StatusServiceUnavailable, "ServiceTemporarilyUnavailable", "60")
		return
	}
	b.record("subscribe", s.destination, true)
	b.work.Add(1)
	go func() {
		defer b.work.Done()
		b.push(ctx, s)
	}()
	c.w.Header().Set("Location", s.path())
	c.reply(http.StatusCreated, b.subscription(s))
}

func (b *RedfishBMC) subscription(s *redfishSubscription) map[string]any {
	b.stateMu.Lock()
	defer b.stateMu.Unlock()
	status := redfishHealthy()
	if s.suspended {
		status = map[string]any{"State": "Disabled", "Health": "Warning"}
	}
	fields := map[string]any{"Context": s.context, "Protocol": "Redfish", "SubscriptionType": "SSE", "Destination": nil, "Status": status}
	if s.destination != "" {
		// HttpHeaders may hold a password: they are never told (DSP8010, EventDestination).
		fields["Destination"], fields["SubscriptionType"], fields["HttpHeaders"] = s.destination, "RedfishEvent", []any{}
		fields["DeliveryRetryPolicy"], fields["EventFormatType"], fields["VerifyCertificate"] = s.policy, "Event", false
	}
	for name, words := range map[string][]string{"RegistryPrefixes": s.prefixes, "EventTypes": s.types} {
		if len(words) > 0 {
			fields[name] = words
		}
	}
	if len(s.origins) > 0 {
		var origins []any
		for _, o := range s.origins {
			origins = append(origins, redfishID(o))
		}
		fields["OriginResources"] = origins
	}
	return redfishNew(s.path(), "#EventDestination.v1_17_0.EventDestination", s.id, "Subscription "+s.id, fields)
}

func (b *RedfishBMC) subscriptionAt(ids []string) *redfishResource {
	b.stateMu.Lock()
	defer b.stateMu.Unlock()
	for _, s := range b.subscriptions {
		if s.id == ids[0] {
			return &redfishResource{
				admin: true,
				get:   func() map[string]any { return b.subscription(s) },
				remove: func(c *redfishCall) {
					b.record("subscribe", "end of "+s.id, true)
					b.unsubscribe(s)
					c.w.WriteHeader(http.StatusNoContent)
				},
			}
		}
	}
	return nil
}

// eventStream sends events as they come (server-sent events, DSP0266, 13.10).
func (b *RedfishBMC) eventStream([]string) *redfishResource {
	return &redfishResource{serve: func(c *redfishCall) {
		if c.r.URL.RawQuery != "" {
			c.fail(http.StatusNotImplemented, "QueryNotSupported")
			return
		}
		s := &redfishSubscription{}
		ctx, ok := b.subscribe(s)
		if !ok {
			c.unavailable(60)
			return
		}
		defer b.unsubscribe(s)
		flush := http.NewResponseController(c.w)
		c.w.Header().Set("Content-Type", "text/event-stream")
		_, err := fmt.Fprint(c.w, ": stream of events\n\n")
		for n := 1; err == nil; n++ {
			if err = flush.Flush(); err != nil {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-c.r.Context().Done():
				return
			case body := <-s.queue:
				_, err = fmt.Fprintf(c.w, "id: %d\ndata: %s\n\n", n, body)
			}
		}
	}}
}
