"""External grading for Open edX over RabbitMQ, as Twisted services."""
