package kvstore

import (
	"context"

	pb "github.com/kvstore/kvstore/clients/go/gen/kvstore/v1"
)

// Put stores value, which is anything that encoding/json can write, and gives the key's new version.
// Options: [WithTTL], [WithIfVersion], [WithRequestID].
func (c *Client) Put(ctx context.Context, key string, value any, options ...Option) (uint64, error) {
	request, err := putJSON(key, value, options)
	return putMethod.call(ctx, c, request, err)
}

// PutText stores text that is JSON already, byte for byte. Else as Put.
func (c *Client) PutText(ctx context.Context, key, text string, options ...Option) (uint64, error) {
	request, err := putText(key, text, options)
	return putMethod.call(ctx, c, request, err)
}

// PutRaw stores any bytes. Else as Put.
func (c *Client) PutRaw(ctx context.Context, key string, raw []byte, options ...Option) (uint64, error) {
	request, err := putRaw(key, raw, options)
	return putMethod.call(ctx, c, request, err)
}

// Get reads one key. A missing key is nil without an error. Options: [WithConsistency].
func (c *Client) Get(ctx context.Context, key string, options ...Option) (*Entry, error) {
	request, err := get(key, options)
	return getMethod.call(ctx, c, request, err)
}

// Delete removes one key and tells whether it was there. Options: [WithIfVersion], [WithRequestID].
func (c *Client) Delete(ctx context.Context, key string, options ...Option) (bool, error) {
	request, err := remove(key, options)
	return deleteMethod.call(ctx, c, request, err)
}

// BatchPut stores many values, each anything that encoding/json can write, and tells how many. Each shard's part is applied whole or
// not at all; the batch over all shards is not atomic. Options: [WithTTL], [WithRequestID].
func (c *Client) BatchPut(ctx context.Context, entries map[string]any, options ...Option) (int, error) {
	request, err := batchPutJSON(entries, options)
	return batchPutMethod.call(ctx, c, request, err)
}

// BatchPutText stores many texts that are JSON already, byte for byte. Else as BatchPut.
func (c *Client) BatchPutText(ctx context.Context, entries map[string]string, options ...Option) (int, error) {
	request, err := batchPutText(entries, options)
	return batchPutMethod.call(ctx, c, request, err)
}

// BatchGet reads many keys, in their order; missing ones are left out. Options: [WithConsistency].
func (c *Client) BatchGet(ctx context.Context, keys []string, options ...Option) ([]*Entry, error) {
	request, err := batchGet(keys, options)
	return batchGetMethod.call(ctx, c, request, err)
}

// Stats counts what one node stores and has done.
func (c *Client) Stats(ctx context.Context) (*pb.StatsResponse, error) {
	return invoke(ctx, c, read, &pb.StatsRequest{}, pb.KvServiceClient.Stats)
}

// Put starts what [Client.Put] does.
func (s *Session) Put(ctx context.Context, key string, value any, options ...Option) *Pending[uint64] {
	request, err := putJSON(key, value, options)
	return putMethod.start(ctx, s, request, err)
}

// PutText starts what [Client.PutText] does.
func (s *Session) PutText(ctx context.Context, key, text string, options ...Option) *Pending[uint64] {
	request, err := putText(key, text, options)
	return putMethod.start(ctx, s, request, err)
}

// PutRaw starts what [Client.PutRaw] does. The bytes may be changed once it has returned.
func (s *Session) PutRaw(ctx context.Context, key string, raw []byte, options ...Option) *Pending[uint64] {
	request, err := putRaw(key, raw, options)
	return putMethod.start(ctx, s, request, err)
}

// Get starts what [Client.Get] does.
func (s *Session) Get(ctx context.Context, key string, options ...Option) *Pending[*Entry] {
	request, err := get(key, options)
	return getMethod.start(ctx, s, request, err)
}

// Delete starts what [Client.Delete] does.
func (s *Session) Delete(ctx context.Context, key string, options ...Option) *Pending[bool] {
	request, err := remove(key, options)
	return deleteMethod.start(ctx, s, request, err)
}

// BatchPut starts what [Client.BatchPut] does.
func (s *Session) BatchPut(ctx context.Context, entries map[string]any, options ...Option) *Pending[int] {
	request, err := batchPutJSON(entries, options)
	return batchPutMethod.start(ctx, s, request, err)
}

// BatchPutText starts what [Client.BatchPutText] does.
func (s *Session) BatchPutText(ctx context.Context, entries map[string]string, options ...Option) *Pending[int] {
	request, err := batchPutText(entries, options)
	return batchPutMethod.start(ctx, s, request, err)
}

// BatchGet starts what [Client.BatchGet] does.
func (s *Session) BatchGet(ctx context.Context, keys []string, options ...Option) *Pending[[]*Entry] {
	request, err := batchGet(keys, options)
	return batchGetMethod.start(ctx, s, request, err)
}
