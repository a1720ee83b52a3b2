"""AMQP 0-9-1 to RabbitMQ: txamqp's client, mended; connections that heal; confirmed publishing; the topology."""
